"""Several files that belong together: all of them appear in a folder at the end, or none.

Files are written into a hidden folder beside their final place and moved when the last one is complete.
Single files are ``writing.atomic``'s matter.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from UADBenchLib.errors import InputError


class Stage:
    """Where the files of one result are written before they are moved to ``out``.

    Attributes
    ----------
    files : list of Path
        Final paths, in the order in which they were asked for.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self._out, self._folder = out, folder
        self.files: list[Path] = []

    def path(self, name: str) -> Path:
        """Return where to write the file that will be ``out / name``.

        Raises
        ------
        ValueError
            If the name is not a bare file name or was asked for before.
        """
        final = self._out / name
        if name != Path(name).name or name in ("", ".", "..") or final in self.files:
            raise ValueError(f"{name!r} is not a new bare file name")
        self.files.append(final)
        return self._folder / name

    def move(self) -> None:
        """Move every file to its final place; nothing is moved when one is missing or cannot be."""
        for final in self.files:
            if not (self._folder / final.name).is_file():
                raise FileNotFoundError(f"{final.name} was announced and not written")
            if final.is_dir():
                raise InputError("NOT_WRITABLE", f"{final} is a folder", "choose another output folder")
        for final in self.files:
            os.replace(self._folder / final.name, final)


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; return what was made, innermost first."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if path.exists())]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def staged(out: str | os.PathLike[str]) -> Iterator[Stage]:
    """Give a ``Stage`` whose files are moved into ``out`` when the block ends well.

    When the block raises anything, nothing of it is left: no file, and no folder that was made for it.

    Raises
    ------
    InputError
        NOT_WRITABLE when the folder cannot be made or written to.
    """
    target = Path(out).absolute()
    made: list[Path] = []
    folder = target / f".uadbench-{secrets.token_hex(8)}.part"
    try:
        made = _make(target)
        folder.mkdir()
    except OSError as error:
        _unmake(made)
        raise InputError(
            "NOT_WRITABLE",
            f"cannot write into {out} ({error.strerror})",
            "choose a folder that you may write to",
        ) from error
    try:
        stage = Stage(Path(out), folder)
        yield stage
        stage.move()
        made = []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unmake(made)


def _unmake(made: list[Path]) -> None:
    """Remove the folders that were made, as far as they are empty."""
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()
