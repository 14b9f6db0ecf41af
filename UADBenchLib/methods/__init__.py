"""The anomaly detection methods, one file each, behind one contract (``base``) and one list (``registry``)."""
