"""What all commands share: where text goes, the progress bar, tables, and the check of an output folder.

Results go to stdout, everything else to stderr, so that ``--json`` gives one JSON document and nothing more.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from UADBenchLib.errors import CancelledError, InputError

if TYPE_CHECKING:
    from UADBenchLib.scan import Check, Progress


def say(text: str = "") -> None:
    """Write a line of a result to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Write a line that is not a result to stderr."""
    sys.stderr.write(text + "\n")


def say_json(document: Any) -> None:
    """Write one JSON document to stdout; values that are not finite are null."""
    from UADBenchLib.evaluation.plain import plain

    say(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def one_line(code: str, message: str, advice: str = "", level: str = "error") -> str:
    """Return ``level CODE: what; what to do`` without line breaks."""
    text = f"{level} {code}: {message}" + (f"; {advice}" if advice else "")
    return " ".join(text.split())


def note_checks(checks: Iterable[Check]) -> None:
    """Write each warning once to stderr."""
    seen = set()
    for check in checks:
        line = one_line(check.code, check.message, check.advice, check.level)
        if check.level == "warning" and line not in seen:
            seen.add(line)
            note(line)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text: the first column left, the others right."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def check_output(out: Path) -> None:
    """Refuse an output folder that cannot be written to, before any work is done; creates nothing.

    Raises
    ------
    InputError
        NOT_WRITABLE.
    """
    existing = out.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("NOT_WRITABLE", f"cannot write into {out}", "choose a folder that you may write to")


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give a progress callback that ends the work when the user asks to, and draws a bar where there is a terminal.

    An exception that Ctrl-C raises inside a callback of a compiled library is lost there. So Ctrl-C, and a
    request to terminate, is noted here and raised as ``CancelledError`` by the next call; a second Ctrl-C
    ends at once.
    """
    asked = False

    def ask(signal_number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    with _handling(ask, signal.SIGINT, signal.SIGTERM), _drawing() as draw:

        def report(stage: str, fraction: float) -> None:
            if asked:
                raise CancelledError()
            draw(stage, fraction)

        yield report
        if asked:
            raise CancelledError()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let a request to terminate do what Ctrl-C does, so that nothing half-written is left behind."""

    def stop(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handling(stop, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None], *numbers: int) -> Iterator[None]:
    """Handle signals by ``handler``; only the main thread can, elsewhere they are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextlib.contextmanager
def _drawing() -> Iterator[Progress]:
    """Give a callback that draws a bar with the time left on stderr, or nothing when that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, fraction: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        last = 0.0

        def draw(stage: str, fraction: float) -> None:
            nonlocal last
            if fraction < last - 0.5:
                bar.reset(task)  # the next part of a job that counts its parts apart
            last = fraction
            bar.update(task, description=stage, completed=fraction)

        yield draw
