"""From a scan on its own grid to a prepared scan in model space, and the recorded way back."""
