"""Tables as files: the findings with the reader's verdicts, and the comparison of all models with the reference.

Volumes, masks and reports are written by the worker, exactly as the command line writes them; pictures of findings
are in ``pictures``. Each file is complete under its name or not there at all.
"""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from . import comparison, findings, results


def write_tables(map_node: Any, folder: Path, stem: str) -> list[Path]:
    """Write the findings of a map with the reader's verdicts, and the comparison where there is one, as CSV.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
    folder : pathlib.Path
        Which exists.
    stem : str
        What the names begin with.

    Returns
    -------
    list of pathlib.Path
        What was written.
    """
    model = map_node.GetAttribute("UADBench.Model")
    path = folder / f"{stem}_model-{model}_desc-reader_findings.csv"
    write_text(path, findings.as_csv(results.nodes_of(map_node).findings))
    table = comparison.table_of(results.input_of(map_node))
    if table is None:
        return [path]
    compared = folder / f"{stem}_comparison.csv"
    write_text(compared, _as_csv(comparison.rows_of(table)))
    return [path, compared]


def _as_csv(rows: list[dict[str, Any]]) -> str:
    """Return a comparison as CSV; what is not defined is an empty field."""
    names = [key for key, _kind, _title in comparison.COLUMNS if key != "map_id"]
    counts = {key for key, kind, _title in comparison.COLUMNS if kind is int}
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, names, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    for row in rows:
        empty = {k for k, v in row.items() if (isinstance(v, float) and math.isnan(v)) or (k in counts and v < 0)}
        table.writerow({key: "" if key in empty else row[key] for key in names})
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".uadbench-")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
