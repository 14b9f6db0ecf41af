"""``uadbench bias``: whether a run's results differ between scanners, sites, ages, sexes and lesions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from UADBenchLib.cli.console import progress_bar, say, say_json
from UADBenchLib.cli.options import JsonOption, RunArgument


def bias(
    run: RunArgument,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the resampling.")] = 0,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Resamples of the subjects.")] = 1000,
    json: JsonOption = False,
) -> None:
    """Test what a benchmark run's results depend on, and write bias.json and bias_*.csv into its folder."""
    from UADBenchLib.bias.files import analyse_run

    with progress_bar() as progress:
        document = analyse_run(run, seed=seed, resamples=resamples, progress=progress)
    if json:
        say_json(document)
        return
    from UADBenchLib.evaluation.plain import plain
    from UADBenchLib.reports.wording import tests_of

    tests = tests_of(plain(document))
    for family in document["families"]:
        own = [test for test in tests if all(test[key] == family[key] for key in ("model", "operating_point"))]
        say(f"{family['model']} at {family['operating_point']}: {len(own)} tests")
        say("\n".join(_line(test) for test in own if test["found"]) or "  nothing found")
        for text in family["notes"]:
            say(f"  note: {text}")
        say()
    say(str(run / "bias.json"))


def _line(test: dict[str, Any]) -> str:
    effects = "; ".join(f"{size} ({interval})" for size, interval in test["effects"])
    size = f"n = {test['subjects']}{', small groups' if test['small'] else ''}"
    return f"  {test['outcome']} by {test['by']} ({test['how']}): {effects}; {test['p']}, {size}"
