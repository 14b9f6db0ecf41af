"""Arguments and options that several commands take, with one wording of their help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class ContrastChoice(str, Enum):
    """Values of ``--contrast``; ``auto`` goes by the BIDS suffix of the file name, else by the image."""

    auto = "auto"
    T1w = "T1w"
    T2w = "T2w"
    FLAIR = "FLAIR"


class KnownContrast(str, Enum):
    """Values of ``--contrast`` where it cannot be told from a name."""

    T1w = "T1w"
    T2w = "T2w"
    FLAIR = "FLAIR"


class Preset(str, Enum):
    """Values of ``--preset``."""

    compact = "compact"
    paper = "paper"


ScanArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SCAN",
        help="NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.",
        show_default=False,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of `uadbench benchmark`.", show_default=False)]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.", show_default=False)]
ContrastOption = Annotated[
    ContrastChoice,
    typer.Option("--contrast", help="Contrast of the scan; auto goes by file name, then image."),
]
BrainMaskOption = Annotated[
    Path | None,
    typer.Option("--brain-mask", metavar="MASK", help="Brain mask to use instead of finding one.", show_default=False),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Go on with a scan that looks like neither T1w, T2w nor FLAIR.")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="What to compute on.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder that a table's paths start from; default: its own.",
        show_default=False,
    ),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes that prepare scans.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to stdout, everything else to stderr.")
]


def chosen_contrast(choice: ContrastChoice) -> str | None:
    """Return the contrast that was named, or None for ``auto``."""
    return None if choice is ContrastChoice.auto else choice.value
