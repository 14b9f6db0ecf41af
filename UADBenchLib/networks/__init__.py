"""Networks that several methods share; no method's own logic."""
