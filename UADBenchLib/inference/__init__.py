"""A scan through a trained model: prepare, score, calibrate, threshold, find; and the worker process that does it for
Slicer."""
