"""Cohort x models: what every scan of a cohort gave under every model, in tables that a study can be written from."""
