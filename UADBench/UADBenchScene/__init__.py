"""What UADBench does in the MRML scene, without any widget: volumes in, results back, the worker process
behind them.

Nothing is imported here. The modules import vtk, numpy and MRML classes, reach the scene through the nodes
that they are given, and of the backend know the worker's messages and the catalogue alone.
"""
