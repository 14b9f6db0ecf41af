"""Trained models on disk: where they lie (``catalogue``, standard library only) and what is in one (``bundle``)."""
