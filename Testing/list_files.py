"""The lists of files that the Slicer extension installs, in UADBench/files.cmake.

CMake installs what is listed and nothing else, so a file that is missing from the lists works in the source
tree and is missing from the extension. ``python Testing/list_files.py`` prints the lists, with ``--update``
it writes them, and a test compares them with the tree.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "UADBench" / "files.cmake"
NOT_INSTALLED = ("Icons", "Screenshots", "Splits")
"""Folders of Resources that belong to the repository or to the benchmark, and not to the extension."""

HEADER = "# Written by Testing/list_files.py --update; a test compares it with the tree.\n"


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted; caches and hidden files do not count."""

    def counts(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts)

    return sorted(path for path in folder.rglob("*") if counts(path) and path.suffix != ".pyc")


def collect(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the file names of each list, relative to where CMake expects them.

    Returns
    -------
    dict
        ``UADBench_SCRIPTS`` and ``UADBench_RESOURCES`` relative to ``UADBench/``, the others to the root.
    """
    module, library = root / "UADBench", root / "UADBenchLib"
    own = [module / "UADBench.py", *files_below(module / "UADBenchScene")]
    backend = files_below(library)
    shared = [
        path
        for path in files_below(root / "Resources")
        if path.relative_to(root / "Resources").parts[0] not in NOT_INSTALLED
    ]
    return {
        "UADBench_SCRIPTS": _names(own, module),
        "UADBench_RESOURCES": _names(files_below(module / "Resources"), module),
        "UADBench_LIBRARY_SCRIPTS": _names([path for path in backend if path.suffix == ".py"], root),
        "UADBench_LIBRARY_RESOURCES": _names([p for p in backend if p.suffix != ".py"] + shared, root),
    }


def _names(paths: list[Path], base: Path) -> list[str]:
    """Return sorted names relative to ``base``, with forward slashes."""
    return sorted(path.relative_to(base).as_posix() for path in paths)


def render(lists: dict[str, list[str]]) -> str:
    """Return the text of files.cmake."""
    blocks = ["\n".join([f"set({name}", *(f"  {file}" for file in files), "  )"]) for name, files in lists.items()]
    return HEADER + "\n" + "\n\n".join(blocks) + "\n"


def main(arguments: list[str]) -> int:
    """Print or update the lists; 2 for an unknown argument."""
    if arguments not in ([], ["--update"]):
        sys.stderr.write("usage: python Testing/list_files.py [--update]\n")
        return 2
    text = render(collect())
    if arguments:
        TARGET.write_text(text, encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
