"""Training: prepared scans on disk, read slice by slice, and the loop that fits a method to them."""
