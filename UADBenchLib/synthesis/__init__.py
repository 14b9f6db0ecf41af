"""Scans made by the project itself: synthetic lesions with exact masks, and the sample case of the demo."""
