"""Synthetic cohorts: what is written, that it is a cohort, that planted effects are there and nothing else is."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import write_phantom

from UADBenchLib.cli.main import main
from UADBenchLib.cohort import read_cohort
from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.synthesis import cohort, implants
from UADBenchLib.synthesis.cohort import synthesise
from UADBenchLib.synthesis.lesions import KINDS
from UADBenchLib.synthesis.plan import MULTIPLIED, Effect, Plan, factors, read_plan

COARSE = """
scanners:
  A: {site: north, voxel_mm: {T1w: [3, 3, 3], T2w: [3, 3, 5], FLAIR: [3, 3, 3]}}
  B: {site: south, voxel_mm: {T1w: [3, 3, 3], T2w: [3, 3, 3], FLAIR: [3, 3, 6]}}
"""


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    write_phantom(folder / "one_dseg.nii.gz")
    write_phantom(folder / "two_dseg.nii.gz")
    return folder


def plan(text: str = COARSE, folder: Path | None = None) -> Plan:
    file = folder / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return read_plan(file)


@pytest.fixture(scope="module")
def made(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "bids"
    chosen = plan(COARSE, out.parent)
    summary = synthesise(maps, out, healthy=1, lesions=2, seed=5, plan=chosen)
    assert summary["participants"] == 3 and summary["scans"] == 9
    return out


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestWritten:
    def test_it_is_a_cohort(self, made: Path) -> None:
        rows = read_cohort(made / "cohort.csv")
        assert [row.label for row in rows] == ["healthy"] * 3 + ["lesion"] * 6
        assert {row.contrast for row in rows} == {"T1w", "T2w", "FLAIR"}
        assert all((row.reference is None) == (row.label == "healthy") for row in rows)
        assert all(row.age and row.sex in "FM" and row.scanner and row.site for row in rows)

    def test_masks_lie_on_their_scan(self, made: Path) -> None:
        for row in read_cohort(made / "cohort.csv"):
            scan = read_scan(row.scan)
            inside = read_mask(row.brain_mask, scan)
            assert "MASK_GRID" not in [check.code for check in scan.checks]
            assert 900 < inside.sum() * scan.voxel_ml < 2000
            assert scan.contrast == row.contrast
            if row.reference is not None:
                reference = read_mask(row.reference, scan)
                assert reference.any() and not (reference & ~inside).any()

    def test_participants(self, made: Path) -> None:
        with (made / "participants.tsv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        assert [row["participant_id"] for row in rows] == ["sub-001", "sub-002", "sub-003"]
        assert rows[0]["lesion_type"] == rows[0]["lesion_ml"] == "n/a"
        assert all(20 <= float(row["age"]) <= 90 for row in rows)
        assert all(float(row["lesion_ml"]) > 0 for row in rows[1:])
        described = json.loads((made / "participants.json").read_text(encoding="utf-8"))
        assert {"age", "sex", "scanner", "lesion_ml"} <= set(described)

    def test_truth_holds_what_was_drawn(self, made: Path) -> None:
        truth = json.loads((made / "truth.json").read_text(encoding="utf-8"))
        assert truth["seed"] == 5 and set(truth["plan"]["scanners"]) == {"A", "B"}
        sick = truth["participants"][1]
        assert sick["lesions"][0]["kind"] == sick["lesion_type"]
        assert set(sick["acquisitions"]) == {"T1w", "T2w", "FLAIR"}
        assert sick["deformation"]["widening_mm"] is not None

    def test_bids_says_what_is_raw_and_what_derived(self, made: Path) -> None:
        raw = json.loads((made / "dataset_description.json").read_text(encoding="utf-8"))
        derived = json.loads((made / "derivatives/uadbench/dataset_description.json").read_text(encoding="utf-8"))
        assert (raw["DatasetType"], derived["DatasetType"]) == ("raw", "derivative")

    def test_the_same_seed_gives_the_same_bytes(self, made: Path, maps: Path, tmp_path: Path) -> None:
        again = tmp_path / "again"
        synthesise(maps, again, healthy=1, lesions=2, seed=5, plan=plan(COARSE, tmp_path), workers=2)
        assert digest(again) == digest(made)

    def test_a_prefix_keeps_cohorts_apart(self, maps: Path, tmp_path: Path) -> None:
        synthesise(maps, tmp_path / "out", healthy=1, lesions=0, plan=plan(COARSE + "prefix: train\n", tmp_path))
        (row,) = [r for r in read_cohort(tmp_path / "out" / "cohort.csv") if r.contrast == "T1w"]
        assert row.subject == "sub-train001" and row.scan.name == "sub-train001_T1w.nii.gz"

    def test_another_seed_gives_another_cohort(self, made: Path, maps: Path, tmp_path: Path) -> None:
        synthesise(maps, tmp_path / "other", healthy=1, lesions=0, seed=6, plan=plan(COARSE, tmp_path))
        name = "sub-001/anat/sub-001_T1w.nii.gz"
        assert digest(tmp_path / "other")[name] != digest(made)[name]


class TestEffects:
    def test_conditions(self) -> None:
        effect = Effect(where={"scanner": ["B", "C"], "age": [60, 90]}, multiply={"noise": 2.0})
        assert effect.applies({"scanner": "C", "age": 60.0})
        assert not effect.applies({"scanner": "C", "age": 90.0})
        assert not effect.applies({"scanner": "A", "age": 70.0})
        assert not effect.applies({"scanner": "C"}), "what is not known does not hold"

    def test_factors_multiply(self) -> None:
        effects = [Effect(where={"sex": "F"}, multiply={"noise": 2.0}), Effect(multiply={"noise": 3.0, "bias": 0.5})]
        found = factors(Plan(effects=tuple(effects)), {"sex": "F"})
        assert found["noise"] == 6.0 and found["bias"] == 0.5
        assert {name for name, factor in found.items() if factor != 1.0} == {"noise", "bias"}

    def truth(self, maps: Path, out: Path, text: str) -> list[dict[str, Any]]:
        chosen = plan(COARSE + text, out.parent)
        synthesise(maps, out, healthy=0, lesions=1, seed=2, plan=chosen)
        return json.loads((out / "truth.json").read_text(encoding="utf-8"))["participants"]

    def test_a_planted_effect_is_all_that_differs(self, maps: Path, tmp_path: Path) -> None:
        (plain,) = self.truth(maps, tmp_path / "plain", "")
        text = "effects:\n  - {where: {contrast: T2w}, multiply: {noise: 3}}\n  - {multiply: {visibility: 0.5}}\n"
        (planted,) = self.truth(maps, tmp_path / "planted", text)
        assert planted["acquisitions"]["T2w"]["noise"] == pytest.approx(3 * plain["acquisitions"]["T2w"]["noise"])
        assert planted["acquisitions"]["T1w"] == plain["acquisitions"]["T1w"]
        assert planted["lesions"][0]["visibility"] == pytest.approx(0.5 * plain["lesions"][0]["visibility"])
        assert planted["deformation"] == plain["deformation"] and planted["looks"] == plain["looks"]
        noisy, clean = (
            read_scan(tmp_path / name / "sub-001/anat/sub-001_T2w.nii.gz").voxels for name in ("planted", "plain")
        )
        air = (slice(0, 4), slice(0, 4), slice(-4, None))
        assert noisy[air].std() == pytest.approx(3 * clean[air].std(), rel=0.25)

    def test_heads_are_mirrored_in_turn(self, maps: Path, tmp_path: Path) -> None:
        text = COARSE + "contrasts: [T1w]\nmirrored: in turn\n"
        synthesise(maps, tmp_path / "bids", healthy=5, lesions=0, seed=5, plan=plan(text, tmp_path))
        rows = read_cohort(tmp_path / "bids" / "cohort.csv")
        assert sorted(row.anatomy for row in rows[:4]) == [
            "one_dseg", "one_dseg-mirrored", "two_dseg", "two_dseg-mirrored",
        ]  # fmt: skip
        assert rows[4].anatomy == rows[0].anatomy == rows[0].held_out_with
        truth = json.loads((tmp_path / "bids" / "truth.json").read_text(encoding="utf-8"))["participants"]
        assert [p["deformation"]["mirrored"] for p in truth] == [False, False, True, True, False]
        assert [row.anatomy for row in read_cohort(tmp_path / "bids")] == [row.anatomy for row in rows]

    def test_only_the_mirroring_differs(self, maps: Path) -> None:
        source = cohort.read_anatomy(sorted(maps.glob("*.nii.gz"))[0])
        drawn = [
            cohort._draw(0, False, source, Plan(), np.random.default_rng(3), mirrored)[0]
            for mirrored in (None, False, True)
        ]
        plain = [replace(d, deformation=replace(d.deformation, mirrored=False)) for d in drawn]
        assert plain[0] == plain[1] == plain[2]
        assert [d.anatomy for d in drawn[1:]] == ["one_dseg", "one_dseg-mirrored"]

    def test_age_and_sex_are_in_the_anatomy(self, maps: Path) -> None:
        source = cohort.read_anatomy(sorted(maps.glob("*.nii.gz"))[0])
        drawn = [cohort._draw(n, False, source, Plan(), np.random.default_rng(n))[0] for n in range(10)]
        age = np.array([d.age for d in drawn])
        widening = np.array([d.deformation.widening_mm for d in drawn])
        assert np.corrcoef(age, widening)[0, 1] > 0.5
        size = {sex: np.mean([np.prod(d.deformation.scale) for d in drawn if d.sex == sex]) for sex in "FM"}
        assert size["F"] < size["M"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("scanners: {A: {site: x, noise: -1}}", "noise"),
            ("effects: [{multiply: {loudness: 2}}]", "loudness"),
            ("effects: [{where: {age: 60}, multiply: {noise: 2}}]", "age"),
            ("effects: [{where: {moon: full}, multiply: {noise: 2}}]", "moon"),
            ("effects: [{multiply: {noise: 1000}}]", "1000"),
            ("lesion_types: [bruise]", "bruise"),
            ("contrasts: [PD]", "contrasts"),
            ("scanners: {}", "scanners"),
            ("mirrored: never", "mirrored"),
            ("- 1", "plan"),
            ("a: [", "YAML"),
            ("!!python/object/apply:os.getcwd []", "YAML"),
        ],
    )
    def test_a_plan_that_makes_no_sense(self, tmp_path: Path, text: str, what: str) -> None:
        with pytest.raises(InputError) as refusal:
            plan(text, tmp_path)
        assert refusal.value.code == "PLAN_INVALID" and what in refusal.value.message

    def test_a_plan_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as refusal:
            read_plan(tmp_path / "none.yaml")
        assert refusal.value.code == "PLAN_INVALID"

    @pytest.mark.parametrize(
        ("healthy", "lesions", "code"), [(0, 0, "COHORT_EMPTY"), (-1, 2, "COHORT_EMPTY"), (1, 0, "OUT_NOT_EMPTY")]
    )
    def test_nothing_is_written(self, maps: Path, tmp_path: Path, healthy: int, lesions: int, code: str) -> None:
        if code == "OUT_NOT_EMPTY":
            (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError) as refusal:
            synthesise(maps, tmp_path, healthy=healthy, lesions=lesions)
        assert refusal.value.code == code
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_cohort_that_was_stopped_leaves_nothing(self, maps: Path, tmp_path: Path) -> None:
        def stop(stage: str, fraction: float) -> None:
            raise CancelledError

        with pytest.raises(CancelledError):
            synthesise(maps, tmp_path / "out", healthy=2, lesions=0, plan=plan(COARSE, tmp_path), progress=stop)
        assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_every_kind_and_quantity_has_a_place() -> None:
    assert set(Plan().lesion_types) == set(KINDS)
    assert set(factors(Plan(), {})) == set(MULTIPLIED)
    assert len(Plan().scanners) >= 4


class TestCommand:
    def test_one_json_document(self, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "plan.yaml").write_text(COARSE, encoding="utf-8")
        options = [
            "--healthy",
            "1",
            "--lesions",
            "0",
            "--workers",
            "1",
            "--plan",
            str(tmp_path / "plan.yaml"),
            "--json",
        ]
        assert main(["synthesise", "--maps", str(maps), "--out", str(tmp_path / "out"), *options]) == 0
        assert json.loads(capsys.readouterr().out)["scans"] == 3
        assert (tmp_path / "out" / "truth.json").is_file()

    def test_bad_input_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["synthesise", "--maps", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("error LABELS_MISSING") and "\n" not in err
        assert not (tmp_path / "out").exists()


class TestImplants:
    """Lesions in real scans: here, scans of the phantom that stand for real ones."""

    @pytest.fixture(scope="class")
    @classmethod
    def healthy(cls, maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("healthy")
        text = COARSE + "contrasts: [T1w]\n"
        synthesise(maps, folder / "bids", healthy=2, lesions=0, seed=8, plan=plan(text, folder))
        return folder / "bids" / "cohort.csv"

    def test_the_subject_is_handed_on_and_the_lesion_is_all_that_differs(self, healthy: Path, tmp_path: Path) -> None:
        chosen = plan("lesion_types: [ms, tumour]\nvisibility: [1, 1]\n", tmp_path)
        summary = implants.implant(healthy, tmp_path / "out", lesions=2, seed=3, plan=chosen)
        assert summary["scans"] == 2
        before = {row.subject: row for row in read_cohort(healthy)}
        made = read_cohort(tmp_path / "out" / "cohort.csv")
        assert [row.lesion_type for row in made] == ["ms", "tumour"]
        for row in made:
            source = before[row.subject]
            assert (row.label, row.age, row.sex, row.site) == ("lesion", source.age, source.sex, source.site)
            scan, plain = read_scan(row.scan), read_scan(source.scan)
            np.testing.assert_allclose(scan.affine, plain.affine, atol=1e-4)
            reference, brain = read_mask(row.reference, scan), read_mask(row.brain_mask, scan)
            changed = np.abs(scan.voxels - plain.voxels)
            assert not changed[~brain].any() and not (reference & ~brain).any()
            assert changed[reference].mean() > 5 * changed[brain & ~reference].mean()

    def test_the_same_seed_gives_the_same_bytes(self, healthy: Path, tmp_path: Path) -> None:
        chosen = plan("lesion_types: [stroke]\n", tmp_path)
        for name, workers in (("one", 1), ("two", 2)):
            implants.implant(healthy, tmp_path / name, lesions=2, seed=4, plan=chosen, workers=workers)
        assert digest(tmp_path / "one") == digest(tmp_path / "two")

    def test_no_healthy_scan(self, healthy: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError) as refusal:
            implants.implant(healthy, tmp_path / "out", lesions=1, plan=plan("contrasts: [FLAIR]", tmp_path))
        assert refusal.value.code == "COHORT_EMPTY" and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("options", [(), ("--maps", "m", "--scans", "c.csv")])
    def test_maps_or_scans(self, options: tuple[str, ...], tmp_path: Path, capsys) -> None:
        assert main(["synthesise", "--out", str(tmp_path / "out"), *options]) == 2
        assert capsys.readouterr().err.startswith("error USAGE")
