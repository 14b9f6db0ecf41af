"""The findings table: rows as the command line writes them, the reader's verdict beside them, and where each is.

The table node holds everything, so that verdicts are saved with the scene. When the threshold moves, a verdict stays
with the finding that has the same peak. Findings as voxels are in ``segments``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import numpy as np
import vtk

from .display import UNIT
from .texts import _
from .volumes import SceneError, ijk_to_ras, parent_matrix

# name, kind, unit, title: the columns of the findings table, in the order of the command line's CSV.
COLUMNS = (
    ("index", int, "", "#"),
    ("volume_ml", float, "ml", _("Volume (ml)")),
    ("peak_z", float, UNIT, _("Peak (z)")),
    ("mean_z", float, UNIT, _("Mean (z)")),
    ("centroid_r", float, "mm", _("Centroid R")),
    ("centroid_a", float, "mm", _("Centroid A")),
    ("centroid_s", float, "mm", _("Centroid S")),
    ("peak_r", float, "mm", _("Peak R")),
    ("peak_a", float, "mm", _("Peak A")),
    ("peak_s", float, "mm", _("Peak S")),
    ("region", str, "", _("Region")),
    ("status", str, "", _("Status")),
    ("overlap", float, "", _("Overlap")),
)
READER = (("verdict", str, "", _("Verdict")), ("comment", str, "", _("Comment")))
"""What the reader adds; not in the command line's table."""
VERDICTS = ("", "accept", "reject", "unsure")


def fill(node: Any, volume: Any, rows: list[dict[str, Any]], affine: np.ndarray) -> None:
    """Replace a table's rows; verdicts stay with findings of the same peak. A missing number is not a number, never 0.

    Parameters
    ----------
    node : vtkMRMLTableNode
    volume : vtkMRMLScalarVolumeNode
        The input of the detection.
    rows : list of dict
        With the columns of ``COLUMNS``, highest peak first.
    affine : numpy.ndarray
        Voxel index to the RAS millimetres of the rows, shape (4, 4).
    """
    said = {_peak(row): row for row in rows_of(node)} if node.GetNumberOfColumns() else {}
    was_modified = node.StartModify()
    node.SetLocked(False)
    node.RemoveAllColumns()
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetAttribute("UADBench.ToWorld", json.dumps(_moved_by(volume, affine).tolist()))
    for name, kind, unit, title in (*COLUMNS, *READER):
        column = {int: vtk.vtkIntArray, float: vtk.vtkDoubleArray, str: vtk.vtkStringArray}[kind]()
        column.SetName(name)
        for row in rows:
            value = {**{key: said.get(_peak(row), {}).get(key) for key, *_rest in READER}, **row}.get(name)
            column.InsertNextValue(kind(value) if value is not None else {int: 0, float: math.nan, str: ""}[kind])
        node.AddColumn(column)
        node.SetColumnTitle(name, title)
        if unit:
            node.SetColumnUnitLabel(name, unit)
    node.SetAttribute("UADBench.Written", json.dumps(_computed(rows_of(node))))
    node.SetLocked(True)
    node.EndModify(was_modified)


def _peak(row: dict[str, Any]) -> tuple[float, ...]:
    """Return the place of a finding's peak, by which it is known again."""
    return tuple(round(float(row[f"peak_{axis}"]), 1) for axis in "ras")


def _computed(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Return what was computed, as JSON has it; the reader's own columns may change."""
    plain = [[row[name] for name, *_rest in COLUMNS] for row in rows]
    return [[None if isinstance(v, float) and math.isnan(v) else v for v in row] for row in plain]


def is_edited(node: Any) -> bool:
    """Return whether somebody changed what was computed, or the columns; a verdict is no change, and neither are the
    digits that saving and reading a table costs.
    """
    try:
        written, now = json.loads(node.GetAttribute("UADBench.Written")), _computed(rows_of(node))
    except (AttributeError, TypeError, ValueError):
        return True
    same = len(written) == len(now)
    return not (
        same and all(_alike(a, b) for one, two in zip(written, now, strict=True) for a, b in zip(one, two, strict=True))
    )


def _alike(first: Any, second: Any) -> bool:
    """Return whether two values are the same but for rounding."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-3)
    return first == second


def rows_of(node: Any) -> list[dict[str, Any]]:
    """Return the rows of a findings table, also when reading a saved one has turned a number into text."""
    table = node.GetTable()
    columns = [(name, kind, table.GetColumnByName(name)) for name, kind, *_rest in (*COLUMNS, *READER)]
    number_of_rows = range(table.GetNumberOfRows())
    return [{name: kind(column.GetValue(row)) for name, kind, column in columns} for row in number_of_rows]


def set_verdict(node: Any, row: int, verdict: str | None = None, comment: str | None = None) -> None:
    """Write the reader's verdict or comment beside a finding.

    Raises
    ------
    SceneError
        NO_SUCH_FINDING, or VERDICT_UNKNOWN for a verdict that is none of ``VERDICTS``.
    """
    _row(node, row)
    if verdict is not None and verdict not in VERDICTS:
        raise SceneError(
            "VERDICT_UNKNOWN",
            _("{verdict} is no verdict").format(verdict=repr(verdict)),
            _("use one of {names}").format(names=", ".join(VERDICTS[1:])),
        )
    for name, value in (("verdict", verdict), ("comment", comment)):
        if value is not None:
            node.GetTable().GetColumnByName(name).SetValue(row, value)
    node.GetTable().Modified()
    node.Modified()


def place_of(node: Any, row: int) -> np.ndarray:
    """Return where the peak of a finding is now, in world RAS millimetres.

    The table says where it was when it was found; a transform that was moved since takes the finding along
    with its volume.

    Raises
    ------
    SceneError
        NO_SUCH_FINDING.
    """
    found = _row(node, row)
    then = np.array([found[f"peak_{axis}"] for axis in "ras"] + [1.0])
    volume = node.GetNodeReference("UADBenchInput")
    if volume is None:
        return then[:3]
    to_world_then = np.array(json.loads(node.GetAttribute("UADBench.ToWorld")))
    return (parent_matrix(volume) @ np.linalg.inv(to_world_then) @ then)[:3]


def _row(node: Any, row: int) -> dict[str, Any]:
    """Return one row."""
    rows = rows_of(node)
    if not 0 <= row < len(rows):
        raise SceneError(
            "NO_SUCH_FINDING",
            _("the table has no row {number}").format(number=row),
            _("select a row of the findings table"),
        )
    return rows[row]


def _moved_by(volume: Any, affine: np.ndarray) -> np.ndarray:
    """Return the parent transform, shape (4, 4), with which a volume's voxels lie where ``affine`` puts them.

    Kept in place of the affine itself, since saving and reading a left-handed volume reverses its third axis.
    """
    return np.asarray(affine, dtype=float) @ np.linalg.inv(ijk_to_ras(volume))


def as_csv(node: Any) -> str:
    """Return the table with the reader's verdicts as CSV; a missing number is an empty field."""
    buffer = io.StringIO()
    names = [name for name, *_rest in (*COLUMNS, *READER)]
    table = csv.DictWriter(buffer, names, lineterminator="\n")
    table.writeheader()
    for row in rows_of(node):
        missing = {name for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
        table.writerow({name: "" if name in missing else value for name, value in row.items()})
    return buffer.getvalue()
