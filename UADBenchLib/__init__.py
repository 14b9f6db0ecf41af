"""UADBench's backend: scans in, anomaly maps out, and the benchmark around them.

Nothing is imported here, so that ``import UADBenchLib`` costs nothing in Slicer or in the command line.
"""

__version__ = "0.1.0"
