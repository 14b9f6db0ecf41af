"""Join the cohorts that `make cohorts` made into one table, whose splits are the cohorts' names."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from measure import write_cohort

from UADBenchLib.cohort import read_cohort
from UADBenchLib.scan import CONTRASTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=Path, required=True, help="what `make cohorts` made")
    parser.add_argument("--contrast", choices=CONTRASTS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the table")
    given = parser.parse_args()
    rows = [
        ("synthetic", replace(row, split=name))
        for name in ("train", "validation", "test")
        for row in read_cohort(given.cohorts / name / "cohort.csv")
        if row.contrast == given.contrast
    ]
    write_cohort(rows, given.out)


if __name__ == "__main__":
    main()
