"""Stopping a running SimpleITK filter: by an error in its iteration observer, since not every one heeds ``Abort``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


class _Stopped(Exception):
    """Raised inside an observer to end its filter; never leaves this module."""


@contextlib.contextmanager
def stoppable(process: Any, check: Callable[[], None]) -> Iterator[None]:
    """Run a filter's ``Execute`` here; ``check`` is called at every iteration and what it raises ends the filter.

    Parameters
    ----------
    process : SimpleITK.ProcessObject
        A filter with iteration events.
    check : callable
        Its exception leaves this context as it is.
    """
    import SimpleITK as sitk

    stopped: list[BaseException] = []

    def iteration() -> None:
        try:
            check()
        except BaseException as error:  # also KeyboardInterrupt: signals arrive while Python runs, which is here
            stopped.append(error)
            raise _Stopped from None

    # SimpleITK prints what an observer raises, through this hook.
    printed = sys.excepthook
    sys.excepthook = lambda kind, *rest: None if kind is _Stopped else printed(kind, *rest)
    process.AddCommand(sitk.sitkIterationEvent, iteration)
    try:
        yield
    except RuntimeError:
        if not stopped:
            raise
    finally:
        sys.excepthook = printed
    if stopped:
        raise stopped[0]
