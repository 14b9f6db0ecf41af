"""Commands that the pages of docs/ show: each is run, on a phantom where it wants data."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pandas
import pytest
from phantom import write_phantom

from UADBenchLib.bias.simulation import simulate_run
from UADBenchLib.cli.main import main
from UADBenchLib.methods.registry import list_methods

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "heads.md"
BIAS = REPOSITORY / "docs" / "bias.md"
LARGE = "--healthy 4 --lesions 4"
"""What marks the command that makes so much that it is run with the slow tests only."""


def blocks(page: Path, language: str = "") -> list[str]:
    """Fenced blocks of a page in one language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for name, content in fences if name == language]


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page) for line in block.splitlines() if line.startswith("uadbench ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page's commands name: label maps and the plan that the page shows."""
    write_phantom(tmp_path / "maps" / "head_dseg.nii.gz")
    (plan,) = blocks(PAGE, "yaml")
    (tmp_path / "plan.yaml").write_text(plan, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> int:
    return main(shlex.split(command)[1:])


def _table(path: Path, contrast: str) -> list[str]:
    """Header and healthy rows of one contrast of a cohort table, with masks left out since they lie elsewhere."""
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    return [header, *(re.sub(r"derivatives[^,]*", "", row) for row in rows if f",{contrast},healthy" in row)]


def test_the_page_shows_commands() -> None:
    assert {shlex.split(command)[1] for command in commands(PAGE)} == {"preprocess", "synthesise"}
    for part in (LARGE, "--plan", "--scans"):
        assert sum(part in command for command in commands(PAGE)) == 1


@pytest.mark.slow
def test_heads(folder: Path) -> None:
    shown = commands(PAGE)
    for command in (c for c in shown if "--plan" in c):
        assert run(command) == 0
    rows = [
        row.replace("sub-pilot001/", "planned/sub-pilot001/", 1)
        for row in _table(folder / "planned" / "cohort.csv", "T1w")
    ]
    (folder / "healthy.csv").write_text("\n".join(rows), encoding="utf-8")
    for command in (c for c in shown if "--scans" in c):
        assert run(command) == 0
    shutil.copy(folder / "planned" / "sub-pilot001" / "anat" / "sub-pilot001_T1w.nii.gz", folder / "head_T1w.nii.gz")
    for command in (c for c in shown if "preprocess" in c):
        assert run(command) == 0
    assert list((folder / "prepared").glob("head_T1w*"))


@pytest.mark.slow
def test_a_whole_cohort(folder: Path) -> None:
    for command in (c for c in commands(PAGE) if LARGE in c):
        assert run(command) == 0
    assert len(list((folder / "cohort").glob("sub-*"))) == 8


PAGES = [*sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_figures_and_links_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_figures_of_the_readme_are_those_that_were_measured() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    shown = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| `.*-compact`", line)
    ]
    assert len(shown) >= 9
    lesions = pandas.read_csv(REPOSITORY / "docs" / "figures" / "models.csv").set_index(["model", "cases"])
    healthy = pandas.read_csv(REPOSITORY / "docs" / "figures" / "healthy.csv").set_index(["model", "operating_point"])
    kinds = ["tumour of at least 10 ml", "stroke", "ms", "wmh"]
    for model, rate, *cells, seconds in shown:
        rates = 100 * healthy["fpr"][model, "fpr-1pct"]
        assert rate == f"{rates.min():.2f} to {rates.max():.2f} %"
        measured = lesions.loc[[(model, case) for case in (*(f"synthetic {kind}" for kind in kinds), "tumour-auto")]]
        assert cells == [f"{row.dice:.2f} / {row.ap:.2f}" for row in measured.itertuples()], model
        assert float(seconds) == measured["seconds"].iloc[0]


def test_every_method_has_a_page() -> None:
    pages = {page.stem for page in (REPOSITORY / "docs" / "methods").glob("*.md")} - {"README"}
    assert pages == set(list_methods())


def test_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a smaller simulated run than the page's; what trains is only parsed."""
    shown = commands(BIAS)
    assert {shlex.split(command)[1] for command in shown} == {"bias", "report", "scaling"}
    monkeypatch.chdir(tmp_path)
    simulate_run("simulated", healthy=12, ill=12, models=("first-t1w-compact",))
    for command in (c for c in shown if c.endswith(" simulated")):
        assert run(command) == 0
    for name in ("bias.json", "bias_effects.csv", "report.html", "figure_false_positives.svg", "triage_scans.csv"):
        assert (tmp_path / "simulated" / name).is_file()
    (command,) = (c for c in shown if " scaling " in c)
    assert run(command + " --fractions none") == 2  # understood up to the fractions


def test_the_slicer_tutorial_names_what_there_is() -> None:
    """Buttons, scripts and calls of the tutorial exist under these names."""
    text = (REPOSITORY / "docs" / "slicer-tutorial.md").read_text(encoding="utf-8")
    text = re.sub(r"(?<=\w)\n(?=\w)", " ", text)
    panel = (REPOSITORY / "UADBench" / "Resources" / "UI" / "UADBench.ui").read_text(encoding="utf-8")
    module = (REPOSITORY / "UADBench" / "UADBench.py").read_text(encoding="utf-8")
    assert len(re.findall(r"^## \d+\. ", text, re.MULTILINE)) == 10
    for name in (
        "Check the scan",
        "Look again",
        "Install what is missing",
        "Import models",
        "Apply",
        "Flicker",
        "Undo",
    ):
        assert name in text and f"<string>{name}" in panel, name
    for call in re.findall(r"logic\.(\w+)\(", text):
        assert f"def {call}(" in module, call
    for path in re.findall(r"`(Testing/[\w/]+\.py)", text):
        assert (REPOSITORY / path).is_file(), path


def test_messages_of_the_troubleshooting_table_are_those_of_the_code() -> None:
    """What the table says is what the program says."""
    text = (REPOSITORY / "docs" / "slicer-tutorial.md").read_text(encoding="utf-8")
    rows = text[text.index("| message | cause | cure |") :].splitlines()[2:]
    table = list(itertools.takewhile(lambda line: line.startswith("|"), rows))
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("UADBench", "UADBenchLib")
        for path in (REPOSITORY / folder).rglob("*.py")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that go over several lines
    seen = 0
    for line in table:
        if line.startswith(("| no CUDA", "| windows freeze")):
            continue
        message = re.sub(r"'[XY]'", "", line.split("|")[1]).strip(" …")
        parts = [part.strip(" …") for part in re.split(r"  +|…", message) if len(part.strip(" …")) > 8]
        assert parts and all(part.lower() in code.lower() for part in parts), message
        seen += 1
    assert seen > 12
