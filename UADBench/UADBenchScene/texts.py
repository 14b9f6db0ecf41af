"""The application's translation of what users read; outside of the application every text stays as it is.

What the worker says comes as it is too: its sentences are put together elsewhere, with numbers in them.
"""

from __future__ import annotations

try:
    # It finds the translation by the file that calls it, so it is imported under this name and never wrapped.
    from slicer.i18n import tr as _
except ImportError:
    _ = str

__all__ = ["_"]
