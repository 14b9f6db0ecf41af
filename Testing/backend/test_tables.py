"""Tables of a benchmark run: what is written is what is read, in one order, whatever order it came in."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from UADBenchLib.benchmark import tables
from UADBenchLib.benchmark.tables import SCANS, TABLES, read_histogram, read_run, read_table, write_table
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram


def scan_row(scan_id: str, model: str = "m", **values: object) -> dict[str, object]:
    return {"scan_id": scan_id, "subject": scan_id, "model": model, "operating_point": "fpr-1pct", **values}


class TestTables:
    def test_keys_are_columns_and_names_are_unique(self):
        for table in TABLES.values():
            assert set(table.key) <= set(table.names)
            assert len(set(table.names)) == len(table.names)
            assert {column.kind for column in table.columns} <= {"text", "integer", "number"}

    def test_round_trip(self, tmp_path: Path):
        rows = [
            scan_row("b", dice=1 / 3, lesions=2, age=None, sex="F", healthy_fpr=0.0),
            scan_row("a", dice=math.nan, lesions=None, age=41.5, sex="", healthy_fpr=1e-7),
        ]
        write_table(tmp_path, SCANS, rows)
        frame = read_table(tmp_path, SCANS)
        assert list(frame.columns) == SCANS.names and list(frame["scan_id"]) == ["a", "b"]
        assert frame["dice"].isna().tolist() == [True, False]
        assert frame["dice"][1] == pytest.approx(1 / 3, rel=1e-8)
        assert frame["lesions"].isna().tolist() == [True, False] and frame["lesions"][1] == 2
        assert frame["sex"].tolist() == ["", "F"] and frame["healthy_fpr"].tolist() == [1e-7, 0.0]

    def test_a_text_that_looks_like_a_number_or_nothing_stays_a_text(self, tmp_path: Path):
        write_table(tmp_path, SCANS, [scan_row("001", site="NA", scanner="1.50")])
        row = read_table(tmp_path, SCANS).iloc[0]
        assert (row["scan_id"], row["site"], row["scanner"]) == ("001", "NA", "1.50")

    def test_order_of_rows_does_not_matter(self, tmp_path: Path):
        rows = [scan_row(s, m, dice=0.1) for s in "cab" for m in "zy"]
        write_table(tmp_path / "one", SCANS, rows)
        write_table(tmp_path / "two", SCANS, reversed(rows))
        assert (tmp_path / "one" / SCANS.file).read_bytes() == (tmp_path / "two" / SCANS.file).read_bytes()

    def test_lesions_are_sorted_as_numbers(self, tmp_path: Path):
        write_table(tmp_path, tables.LESIONS, [scan_row("a", lesion=n) for n in (10, 9, 1)])
        assert read_table(tmp_path, tables.LESIONS)["lesion"].tolist() == [1, 9, 10]

    def test_missing_or_foreign_tables(self, tmp_path: Path):
        with pytest.raises(InputError, match="RUN_NOT_FOUND"):
            read_table(tmp_path, SCANS)
        (tmp_path / SCANS.file).write_text("scan_id,dice\na,1\n")
        with pytest.raises(InputError, match="RUN_INVALID"):
            read_table(tmp_path, SCANS)


class TestHistograms:
    def test_round_trip_and_merging(self, tmp_path: Path):
        rng = np.random.default_rng(0)
        made = {}
        for scan in ("a", "b"):
            made[scan] = Histogram(bins_per_unit=32.0).add(rng.gamma(1, 2, 500), rng.random(500) < 0.1)
            tables.write_histograms(tmp_path, scan, {"m": made[scan], "n": Histogram()})
        back = read_histogram(tmp_path, "a", "m")
        assert back.bins_per_unit == 32.0
        np.testing.assert_array_equal(back.positives, made["a"].positives)
        total = Histogram(bins_per_unit=32.0)
        for histogram in tables.histograms(tmp_path, ["a", "b"], "m"):
            total.merge(histogram)
        np.testing.assert_array_equal(total.negatives, made["a"].negatives + made["b"].negatives)

    def test_unknown_scan_or_model(self, tmp_path: Path):
        tables.write_histograms(tmp_path, "a", {"m": Histogram()})
        for scan, model in (("b", "m"), ("a", "n")):
            with pytest.raises(InputError, match="RUN_NOT_FOUND"):
                read_histogram(tmp_path, scan, model)


class TestRun:
    def test_unreadable(self, tmp_path: Path):
        with pytest.raises(InputError, match="RUN_NOT_FOUND"):
            read_run(tmp_path)
        (tmp_path / "run.json").write_text('{"schema_version": 1}')
        with pytest.raises(InputError, match="RUN_INVALID"):
            read_run(tmp_path)
