"""Detection end to end with the laboratory's model: what a detection holds, refusals, thresholds, consensus."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import Laboratory, make_bundle

from UADBenchLib.bundles import catalogue as bundles
from UADBenchLib.bundles.bundle import Bundle, load_metadata
from UADBenchLib.bundles.catalogue import find_model
from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.inference import detector
from UADBenchLib.inference.detector import CONSENSUS, Detection, detect, region, restore, rethreshold
from UADBenchLib.inference.device import choose_device, devices
from UADBenchLib.inference.worker import Kept
from UADBenchLib.preprocessing.contrast import ContrastFound
from UADBenchLib.preprocessing.recipe import Prepared, Recipe
from UADBenchLib.reports.worker import export
from UADBenchLib.scan import Scan
from UADBenchLib.writing import write_json

Sample = tuple[Scan, np.ndarray, np.ndarray]
SECOND = "intensity-norm-t1w-second"


@pytest.fixture(scope="module")
def catalogue(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The laboratory's model twice under two ids, one that is not calibrated, one of another contrast."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(laboratory.bundle, folder / laboratory.model)
    for name, changes in ((SECOND, {"id": SECOND}), ("flair", {"id": "flair", "contrast": "FLAIR"})):
        shutil.copytree(laboratory.bundle, folder / name)
        file = folder / name / "configs" / "metadata.json"
        write_json(file, json.loads(file.read_text()) | changes)
    points = {"fpr-1pct": {"threshold": 3, "healthy_fpr": 0.01, "ci": [2, 4], "origin": "x"}}
    make_bundle(folder / "raw", "disyre", {"widths": (8, 16)}, id="raw", operating_points=points)
    return folder


@pytest.fixture(autouse=True)
def use(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UADBENCH_MODELS", str(catalogue))


@pytest.fixture(scope="module")
def told() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def detections(catalogue: Path, laboratory: Laboratory, sample: Sample, told: list) -> list[Detection]:
    """Two models and their consensus on the sample."""
    scan, reference, mask = sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UADBENCH_MODELS", str(catalogue))
        return detect(
            scan,
            [laboratory.model, SECOND],
            brain_mask=mask,
            reference=reference,
            device="cpu",
            progress=lambda *now: told.append(now),
        )


class TestDetection:
    def test_arrays(self, detections: list[Detection], sample: Sample) -> None:
        scan, _, brain = sample
        for found in detections:
            assert found.map.shape == found.raw.shape == found.mask.shape == found.brain_mask.shape == scan.shape
            assert (found.map.dtype, found.raw.dtype, found.mask.dtype) == (np.float32, np.float32, np.uint8)
            assert np.isfinite(found.map).all() and found.map.min() >= 0
            assert not found.map[~brain].any() and not found.raw[~brain].any()
            np.testing.assert_array_equal(found.brain_mask > 0, brain)
            assert (found.map[found.mask > 0] > found.threshold).all()
            np.testing.assert_array_equal(found.affine, scan.affine)

    def test_the_lesion_is_found(self, detections: list[Detection], sample: Sample) -> None:
        _, reference, _ = sample
        first = detections[0]
        assert first.metrics["average_precision"] > 0.3 > 10 * reference.mean()
        assert first.metrics["lesions_hit"] == 1
        assert any(finding.status == "TP" for finding in first.findings)
        assert first.map[reference].mean() > 3 * first.map[(first.brain_mask > 0) & ~reference].mean()

    def test_the_true_finding_is_named_by_its_place(self, detections: list[Detection]) -> None:
        true = max((f for f in detections[0].findings if f.status == "TP"), key=lambda finding: finding.volume_ml)
        assert true.region.startswith("right")
        assert true.centroid_ras[0] > 10

    def test_thresholds_are_those_of_the_bundle(self, detections: list[Detection], laboratory: Laboratory) -> None:
        point = load_metadata(laboratory.bundle).operating_points["fpr-1pct"]
        assert detections[0].threshold == point.threshold
        assert detections[0].origin == point.origin and detections[0].operating_point == "fpr-1pct"

    def test_summaries_are_json_without_a_path(self, detections: list[Detection], catalogue: Path) -> None:
        for found in detections:
            text = json.dumps(found.summary("sub-1_T1w"), allow_nan=True)
            assert str(catalogue) not in text
            summary = json.loads(text)
            assert summary["scan"] == "sub-1_T1w" and summary["model"] == found.model
            assert summary["findings"] == len(found.findings)
            assert "not a medical device" in summary["note"]
            assert summary["contrast"]["used"] == summary["contrast"]["found"] == "T1w"
            assert summary["quality"]["snr"] > 5 and summary["quality"]["ghosting"] is None
        assert detections[0].domain["distance"] > 0 and detections[0].domain["limit"] > 0
        assert detections[0].summary("x")["highest_z"] == pytest.approx(float(detections[0].map.max()), abs=1e-3)

    def test_provenance_names_what_was_used(self, detections: list[Detection], laboratory: Laboratory) -> None:
        provenance = detections[0].provenance
        metadata = load_metadata(laboratory.bundle)
        assert provenance["model"] == laboratory.model
        assert provenance["weights_sha256"] == metadata.sha256["models/model.safetensors"]
        assert provenance["recipe_hash"] == metadata.recipe_hash and provenance["device"] == "cpu"
        assert {"uadbench", "torch", "numpy", "SimpleITK"} <= set(provenance["versions"])
        assert [step["step"] for step in provenance["preparation"]][:2] == ["orientation", "brain mask"]

    def test_seconds_cover_every_stage(self, detections: list[Detection]) -> None:
        seconds = detections[0].seconds
        assert {"bias field", "registration", "scoring", "map and findings"} <= set(seconds)
        assert all(value >= 0 for value in seconds.values())

    def test_progress_rises_to_1(self, detections: list[Detection], told: list[tuple[str, float]]) -> None:
        shares = [share for _, share in told]
        assert shares == sorted(shares) and shares[0] >= 0 and told[-1] == ("done", 1.0)
        stages = list(dict.fromkeys(stage for stage, _ in told))
        assert stages[:4] == ["orientation", "brain mask", "bias field", "registration"] and "scoring" in stages

    def test_again_gives_the_same(self, detections: list[Detection], sample: Sample, laboratory: Laboratory) -> None:
        scan, reference, mask = sample
        (again,) = detect(scan, [laboratory.model], brain_mask=mask, reference=reference, device="cpu")
        # Threads of the registration add up in any order: the last digits may differ, nothing that a user sees.
        np.testing.assert_allclose(again.map, detections[0].map, atol=0.01)
        first = detections[0].findings
        assert [f.status for f in again.findings] == [f.status for f in first]
        assert [f.volume_ml for f in again.findings] == pytest.approx([f.volume_ml for f in first], rel=0.02, abs=0.01)
        assert again.metrics["dice"] == pytest.approx(detections[0].metrics["dice"], abs=1e-3)


class TestConsensus:
    def test_it_is_the_mean(self, detections: list[Detection]) -> None:
        first, second, consensus = detections
        assert (second.model, consensus.model) == (SECOND, CONSENSUS)
        np.testing.assert_allclose(consensus.map, (first.map + second.map) / 2, rtol=1e-6)
        assert consensus.threshold == (first.threshold + second.threshold) / 2
        assert "no calibration of its own" in consensus.origin
        assert [entry["model"] for entry in consensus.provenance["models"]] == [first.model, SECOND]

    def test_equal_models_agree_with_their_consensus(self, detections: list[Detection]) -> None:
        np.testing.assert_array_equal(detections[0].map, detections[1].map)
        np.testing.assert_array_equal(detections[0].mask, detections[2].mask)
        assert detections[0].metrics == detections[2].metrics


class TestThresholds:
    def test_a_higher_threshold_flags_less(self, detections: list[Detection]) -> None:
        found = [rethreshold(detections[0], threshold, 0.0) for threshold in (0.5, 2.0, 4.0, 8.0, 16.0)]
        for lower, higher in zip(found, found[1:], strict=False):
            assert (higher.mask <= lower.mask).all()
            assert higher.mask.sum() < lower.mask.sum()

    def test_a_larger_minimum_leaves_fewer_findings(self, detections: list[Detection]) -> None:
        found = [rethreshold(detections[0], 3.0, minimum) for minimum in (0.0, 0.1, 1.0, 5.0)]
        counts = [len(entry.findings) for entry in found]
        assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
        assert all(f.volume_ml >= 1.0 for f in found[2].findings)

    def test_the_same_threshold_gives_the_same(self, detections: list[Detection]) -> None:
        again = rethreshold(detections[0], detections[0].threshold)
        np.testing.assert_array_equal(again.mask, detections[0].mask)
        assert again.findings == detections[0].findings and again.metrics == detections[0].metrics
        assert again.operating_point == "user" and again.origin == "chosen by the user"

    def test_nothing_above_the_threshold_is_a_result(self, detections: list[Detection]) -> None:
        empty = rethreshold(detections[0], 1e6)
        assert empty.findings == [] and not empty.mask.any() and empty.mask.dtype == np.uint8
        assert empty.metrics["dice"] == 0 and empty.metrics["lesions_hit"] == 0
        assert empty.summary("x")["findings"] == 0 and empty.summary("x")["findings_ml"] == 0

    @pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
    def test_a_threshold_that_is_none(self, detections: list[Detection], threshold: float) -> None:
        with pytest.raises(InputError) as refusal:
            rethreshold(detections[0], threshold)
        assert refusal.value.code == "OPTION_INVALID"


@pytest.fixture
def t1w_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no model for another contrast were installed."""
    fitting = [entry for entry in bundles.list_models() if entry.get("contrast") == "T1w"]
    monkeypatch.setattr(bundles, "list_models", lambda: fitting)


class TestRefusals:
    """All of these come before the work: preparation would be noticed."""

    @pytest.fixture(autouse=True)
    def no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def prepare(*_: object, **__: object) -> None:
            raise AssertionError("prepared a scan that should have been refused")

        monkeypatch.setattr(detector, "prepare", prepare)

    def code(self, scan: Scan, *models: str, **options: object) -> str:
        with pytest.raises(InputError) as refusal:
            detect(scan, models, device=options.pop("device", "cpu"), **options)
        assert refusal.value.advice
        return refusal.value.code

    def test_contrast(self, sample: Sample, laboratory: Laboratory) -> None:
        assert self.code(replace(sample[0], contrast="FLAIR"), laboratory.model) == "CONTRAST_MISMATCH"
        assert self.code(replace(sample[0], contrast=None), laboratory.model, "flair") == "CONTRAST_MISMATCH"

    def test_no_model_of_the_contrast(self, sample: Sample, t1w_alone: None) -> None:
        assert self.code(replace(sample[0], contrast="T2w")) == "MODEL_MISSING"

    def test_unknown_names(self, sample: Sample, laboratory: Laboratory) -> None:
        assert self.code(sample[0], "nobody") == "MODEL_UNKNOWN"
        assert self.code(sample[0], laboratory.model, operating_point="fpr-2pct") == "OPERATING_POINT_UNKNOWN"
        assert self.code(sample[0], laboratory.model, device="cuda:77") == "DEVICE_UNKNOWN"

    def test_not_calibrated(self, sample: Sample) -> None:
        assert self.code(sample[0], "raw") == "NOT_CALIBRATED"

    @pytest.mark.parametrize("name", ["brain_mask", "reference"])
    def test_masks_of_another_grid(self, sample: Sample, laboratory: Laboratory, name: str) -> None:
        wrong = np.zeros((5, 5, 5), dtype=bool)
        assert self.code(sample[0], laboratory.model, **{name: wrong}) == "GRID_MISMATCH"

    def test_damaged_weights(
        self, sample: Sample, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = shutil.copytree(laboratory.bundle, tmp_path / laboratory.model)
        file = Path(folder) / "models" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path))
        assert self.code(sample[0], laboratory.model) == "BUNDLE_DAMAGED"


class TestContrast:
    """What the image says decides where nobody else does; the work is done once, before the default model is known."""

    @pytest.fixture
    def prepared(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Preparation finds the contrast that the list holds last; detection ends with the model it would use."""

        def prepare(scan: Scan, recipe: Recipe, **_: object) -> Prepared:
            inside = np.ones(recipe.shape, dtype=bool)
            empty = np.zeros(recipe.shape, np.float32)
            made = Prepared(empty, inside, recipe.affine, np.ones(scan.shape, dtype=bool), np.eye(4), [], [])
            made.contrast = ContrastFound(found[-1], "because", 0.3, 0.6, 0.8, 0.0)
            calls.append(recipe.hash)
            assert len(calls) == 1, "prepared twice"
            return made

        found, calls = ["T1w"], []
        monkeypatch.setattr(detector, "prepare", prepare)
        return found

    def ready(self, found: str) -> Prepared:
        contrast = ContrastFound(found, "because", 0.3, 0.6, 0.8, 0.0)
        return type("Prepared", (), {"contrast": contrast})()

    def test_no_model_and_no_word(
        self, prepared: list[str], sample: Sample, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def one(scan: Scan, ready: Prepared, bundle: Bundle, *_: object) -> None:
            raise InputError("REACHED", bundle.metadata.id, "")

        monkeypatch.setattr(detector, "_one", one)
        unknown = replace(sample[0], contrast=None)
        with pytest.raises(InputError) as reached:
            detect(unknown, device="cpu")
        assert reached.value.code == "REACHED" and "t1w" in reached.value.message

    @pytest.mark.parametrize(("found", "code"), [("T2w", "MODEL_MISSING"), ("other", "CONTRAST_OTHER")])
    def test_what_no_model_is_for(
        self, found: str, code: str, prepared: list[str], sample: Sample, t1w_alone: None
    ) -> None:
        prepared.append(found)
        with pytest.raises(InputError) as refusal:
            detect(replace(sample[0], contrast=None), device="cpu")
        assert refusal.value.code == code and refusal.value.advice

    def test_the_user_wins_with_a_warning(self, sample: Sample) -> None:
        record, (check,) = detector._settled(sample[0], self.ready("FLAIR"), [], False)
        assert (record["used"], record["stated"], record["found"]) == ("T1w", "T1w", "FLAIR")
        assert check.code == "CONTRAST_DISAGREES" and "file name or --contrast" in check.message
        json.dumps(record, allow_nan=False)

    def test_so_does_the_model_chosen_for_an_unknown_scan(self, sample: Sample, laboratory: Laboratory) -> None:
        unknown, bundles = replace(sample[0], contrast=None), [detector.open_model(find_model(laboratory.model))]
        record, (check,) = detector._settled(unknown, self.ready("FLAIR"), bundles, False)
        assert record["used"] == "T1w" and record["stated"] is None and "the model chosen" in check.message
        assert detector._settled(unknown, self.ready("T1w"), bundles, False)[1] == ()

    def test_but_not_for_a_scan_that_is_none_of_the_three(self, sample: Sample, laboratory: Laboratory) -> None:
        unknown, bundles = replace(sample[0], contrast=None), [detector.open_model(find_model(laboratory.model))]
        with pytest.raises(InputError) as refusal:
            detector._settled(unknown, self.ready("other"), bundles, False)
        assert refusal.value.code == "CONTRAST_OTHER"
        record, (check,) = detector._settled(unknown, self.ready("other"), bundles, True)
        assert record["used"] == "T1w" and check.code == "CONTRAST_OTHER"


class TestAgain:
    def test_a_map_and_its_summary_give_the_same_findings_again(self, detections: list[Detection]) -> None:
        for before in (detections[0], detections[-1]):
            summary = json.loads(json.dumps(before.summary("x")))
            after = restore(
                before.model,
                before.map,
                before.affine,
                before.threshold,
                brain_mask=before.brain_mask,
                reference=before.reference,
                summary=summary,
            )
            assert [f.row() for f in after.findings] == [f.row() for f in before.findings]
            np.testing.assert_array_equal(after.mask, before.mask)
            assert after.metrics == before.metrics and after.origin == before.origin
            assert after.checks == before.checks and any(f.region for f in after.findings)

    def test_without_a_summary_places_have_no_name(self, detections: list[Detection]) -> None:
        before = detections[0]
        after = restore(before.model, before.map, before.affine, before.threshold)
        assert after.findings and {finding.region for finding in after.findings} == {""}

    def test_files_of_a_map_of_an_earlier_session(
        self, detections: list[Detection], sample: Sample, tmp_path: Path
    ) -> None:
        """What Slicer exports is what the command line writes, also when the maps come from a saved scene."""
        scan, reference, _ = sample
        kept = {
            one.model: restore(
                one.model,
                one.map,
                one.affine,
                one.threshold,
                brain_mask=one.brain_mask,
                summary=json.loads(json.dumps(one.summary("x"))),
            )
            for one in detections
        }
        (tmp_path / "job").mkdir()
        np.save(tmp_path / "job" / "voxels.npy", scan.voxels)
        np.save(tmp_path / "job" / "reference.npy", reference.astype(np.uint8))
        fields = {"voxels": "voxels.npy", "affine": scan.affine.tolist(), "contrast": "T1w", "stem": "case"}
        request = {"out": str(tmp_path / "out"), "formats": ["files"], "scan": fields, "reference": "reference.npy"}
        files = export(request, Kept(tmp_path / "job", "case", kept))["files"]
        assert sorted(files) == sorted(path.name for path in (tmp_path / "out").iterdir())
        assert {f"case_model-{one.model}_findings.csv" for one in detections} < set(files)
        assert "case_report.html" in files and "case_brain_mask.nii.gz" in files

    def test_smoothing_takes_specks_away_and_is_recorded(self, detections: list[Detection]) -> None:
        speck = np.zeros_like(detections[0].map)
        speck[20, 20, 20], speck[30:38, 30:38, 20:28] = 9.0, 9.0
        before = restore("x", speck, detections[0].affine, 3.0, brain_mask=np.ones(speck.shape))
        smooth = rethreshold(before, 3.0, 0.0, 3.0)
        assert len(before.findings) == 2 and len(smooth.findings) == 1
        assert smooth.findings[0].peak_z == 9.0, "peaks are those of the map itself"
        assert smooth.summary("x")["smoothing_mm"] == 3.0
        assert rethreshold(smooth, 3.0, 0.0, 0.0).mask.sum() == before.mask.sum()

    def test_the_pseudo_healthy_scan(self, sample: Sample, laboratory: Laboratory, detections: list[Detection]) -> None:
        scan, reference, brain = sample
        (found,) = detect(scan, [laboratory.model], brain_mask=brain, device="cpu", reconstruct=True, batch=3)
        assert found.reconstruction.shape == found.residual.shape == scan.shape
        assert not found.reconstruction[~brain].any() and found.reconstruction[brain].mean() > 0.1
        assert abs(found.residual[reference]).mean() > abs(found.residual[brain & ~reference]).mean()
        np.testing.assert_allclose(found.map, detections[0].map, atol=1e-3)
        assert detections[0].reconstruction is None and detections[0].residual is None


def test_cancelling_in_the_middle_ends_it(sample: Sample, laboratory: Laboratory) -> None:
    def stop(stage: str, share: float) -> None:
        if stage == "bias field":
            raise CancelledError

    with pytest.raises(CancelledError):
        detect(sample[0], [laboratory.model], brain_mask=sample[2], device="cpu", progress=stop)


def test_a_model_trained_again_is_not_taken_for_the_old_one(catalogue: Path, laboratory: Laboratory) -> None:
    first, _ = detector.open_model(find_model(SECOND))
    assert detector.open_model(find_model(SECOND))[0] is first
    file = catalogue / SECOND / "configs" / "metadata.json"
    before = file.read_text()
    try:
        write_json(file, json.loads(before) | {"version": "other"})
        assert detector.open_model(find_model(SECOND))[0] is not first
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ((30, 30, 20), "right anterior middle"),
        ((-30, -60, 50), "left posterior superior"),
        ((0, 0, -5), "midline central inferior"),
        ((-20, -60, -30), "left posterior fossa"),
    ],
)
def test_regions(place: tuple[float, float, float], name: str) -> None:
    assert region(np.array(place, dtype=float)) == name


def test_devices() -> None:
    known = devices()
    assert known[0]["id"] == "cpu" and all(set(entry) == {"id", "name", "memory_free_gb"} for entry in known)
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cpu" if len(known) == 1 else known[1]["id"].split(":")[0])
    with pytest.raises(InputError) as refusal:
        choose_device("tpu")
    assert refusal.value.code == "DEVICE_UNKNOWN" and "cpu" in refusal.value.advice
