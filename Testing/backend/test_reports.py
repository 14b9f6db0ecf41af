"""Files of a detection: complete or absent, on the scan's grid, without a face, a name or a script."""

from __future__ import annotations

import base64
import csv
import html
import json
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.compare import compare
from UADBenchLib.inference.findings import COLUMNS, Finding, find
from UADBenchLib.reports import detection as pages
from UADBenchLib.reports import figure
from UADBenchLib.reports.staging import staged
from UADBenchLib.scan import Check, Scan

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2.0, 0, -50], [0, 0, 2.0, -30], [0, 0, 0, 1]])
RIGHT_LESION = (slice(6, 10), slice(20, 24), slice(14, 18))


@dataclass
class Detected:
    """What the reports read of a detection."""

    model: str
    map: np.ndarray
    raw: np.ndarray
    mask: np.ndarray
    brain_mask: np.ndarray
    affine: np.ndarray
    findings: list[Finding]
    metrics: dict[str, Any] | None
    threshold: float = 3.0
    operating_point: str = "fpr-1pct"
    origin: str = "20 healthy validation scans"
    seconds: dict[str, float] = field(default_factory=lambda: {"registration": 2.5, "scoring": 1.25})
    checks: list[Check] = field(default_factory=list)
    provenance: dict[str, Any] = field(
        default_factory=lambda: {"weights_sha256": "ab" * 32, "versions": {"numpy": "2"}}
    )
    contrast: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    domain: dict[str, Any] | None = None

    def summary(self, stem: str) -> dict[str, Any]:
        return {"scan": stem, "model": self.model, "metrics": self.metrics}


@pytest.fixture
def scan() -> Scan:
    """A head whose brain is an ellipsoid, stored with i to the left."""
    shape = (40, 48, 32)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    voxels = np.full(shape, 500.0, np.float32)
    voxels[(place**2).sum(axis=0) < 0.7] = 100.0
    voxels[RIGHT_LESION] = 40.0
    return Scan(
        voxels,
        AFFINE,
        stem="sub-1_T1w",
        contrast="T1w",
        provenance={"format": "NIfTI-1", "sha256": "0f" * 32},
    )


@pytest.fixture
def reference(scan: Scan) -> np.ndarray:
    mask = np.zeros(scan.shape, bool)
    mask[RIGHT_LESION] = True
    return mask


def detected(scan: Scan, model: str, reference: np.ndarray | None = None, **changes: Any) -> Detected:
    """A detection of the lesion and of one false spot."""
    brain = scan.voxels < 500
    scores = np.zeros(scan.shape, np.float32)
    scores[RIGHT_LESION] = 6.0
    scores[25:27, 30:32, 10:12] = 4.0
    scores *= brain
    mask, findings = find(scores, scores > 3, scan.affine, minimum_ml=0.01, reference=reference)
    metrics = None if reference is None else compare(scores, mask, reference, brain, scan.voxel_ml)
    return Detected(
        model, scores, scores / 1000, mask, brain.astype(np.uint8), scan.affine, findings, metrics, **changes
    )


def test_all_files_of_the_interface_are_written(scan: Scan, reference: np.ndarray, tmp_path: Path) -> None:
    import nibabel

    detections = [detected(scan, "fae-t1w-compact", reference), detected(scan, "consensus", reference)]
    written = pages.write_detection(tmp_path / "a" / "out", scan, detections, reference, save_raw=True)
    one = "sub-1_T1w_model-fae-t1w-compact"
    expected = {f"sub-1_T1w_{rest}" for rest in ("brain_mask.nii.gz", "report.html")}
    expected |= {
        f"{one}{rest}"
        for rest in (
            "_anomaly.nii.gz",
            "_desc-raw_anomaly.nii.gz",
            "_label-anomaly_mask.nii.gz",
            "_findings.csv",
            ".json",
            ".png",
        )
    }
    both = "sub-1_T1w_model-consensus"
    expected |= {
        f"{both}{rest}" for rest in ("_anomaly.nii.gz", "_label-anomaly_mask.nii.gz", "_findings.csv", ".json", ".png")
    }
    assert {path.name for path in written} == expected
    assert {path.name for path in (tmp_path / "a" / "out").iterdir()} == expected
    image = nibabel.load(tmp_path / "a" / "out" / f"{one}_anomaly.nii.gz")
    assert image.get_data_dtype() == np.float32 and np.array_equal(image.affine, AFFINE)
    assert np.array_equal(np.asarray(image.dataobj), detections[0].map)
    mask = nibabel.load(tmp_path / "a" / "out" / f"{one}_label-anomaly_mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8 and np.asarray(mask.dataobj).sum() == detections[0].mask.sum()
    with open(tmp_path / "a" / "out" / f"{one}_findings.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [row["status"] for row in rows] == ["TP", "FP"]
    summary = json.loads((tmp_path / "a" / "out" / f"{one}.json").read_text())
    assert summary["scan"] == "sub-1_T1w" and summary["metrics"]["dice"] == pytest.approx(2 * 64 / (72 + 64))


def test_nothing_is_left_when_a_file_fails(scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise InputError("DISK_FULL", "no space left", "free some")

    monkeypatch.setattr(pages, "report_html", full)
    with pytest.raises(InputError):
        pages.write_detection(tmp_path / "new" / "out", scan, [detected(scan, "fae")])
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "old"
    kept.mkdir()
    (kept / "sub-1_T1w_report.html").write_text("earlier")
    with pytest.raises(InputError):
        pages.write_detection(kept, scan, [detected(scan, "fae")])
    assert [path.name for path in kept.iterdir()] == ["sub-1_T1w_report.html"]
    assert (kept / "sub-1_T1w_report.html").read_text() == "earlier"


def test_a_file_in_the_place_of_the_folder_is_refused(scan: Scan, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError) as refusal:
        pages.write_detection(tmp_path / "out", scan, [detected(scan, "fae")])
    assert refusal.value.code == "NOT_WRITABLE"


def test_stage_moves_all_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out") as stage:
        stage.path("a.txt").write_text("a")
        stage.path("b.txt")
    assert list(tmp_path.iterdir()) == []
    with staged(tmp_path / "out") as stage:
        stage.path("a.txt").write_text("a")
        assert not (tmp_path / "out" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    with staged(tmp_path / "out") as stage:
        for name in ("../a.txt", "", "b/c.txt"):
            with pytest.raises(ValueError, match="bare file name"):
                stage.path(name)


def image_of(page: str) -> np.ndarray:
    """The picture in a page as an RGB array."""
    from matplotlib.image import imread

    data = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page).group(1)
    return (imread(BytesIO(base64.b64decode(data)))[..., :3] * 255).astype(int)


def test_page_says_what_was_run_and_needs_nothing_else(scan: Scan, reference: np.ndarray) -> None:
    check = Check("warning", "THICK_SLICES", "slices are 5 mm apart", "small lesions may be missed")
    page = pages.report_html(scan, [detected(scan, "fae-t1w-compact", reference, checks=[check])], reference)
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for part in (
        "sub-1_T1w",
        "T1w",
        "fae-t1w-compact",
        "Research software; not a medical device.",
        "fpr-1pct",
        "20 healthy validation scans",
        "n = 1 scan",
        "Empty-case policy lesion-scans-only v1",
        "tenth-overlap-26 v1",
        "slices are 5 mm apart. Small lesions may be missed.",
        "ab" * 32,
        "0f" * 32,
        "0.941",
        "scoring",
        "3.75",
    ):
        assert part in text, part
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", page)
    assert image_of(page).shape[2] == 3


def test_page_without_reference_has_no_comparison(scan: Scan) -> None:
    page = pages.report_html(scan, [detected(scan, "fae")])
    assert "Comparison with the reference" not in page and "overlap" not in page


def test_page_without_findings_does_not_say_healthy(scan: Scan) -> None:
    nothing = detected(scan, "fae")
    nothing.findings, nothing.mask = [], np.zeros(scan.shape, np.uint8)
    nothing.map = np.zeros(scan.shape, np.float32)
    page = pages.report_html(scan, [nothing])
    assert "0 findings" in page and "does not mean that the scan is healthy" in page


def test_text_from_outside_is_escaped(scan: Scan) -> None:
    scan.stem = "<script>alert(1)</script>"
    one = detected(scan, "fae", checks=[Check("info", "X", "<img src=x onerror=y>", "")])
    page = pages.report_html(scan, [one])
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page


def drawn(scan: Scan, tmp_path: Path, *detections: Detected, reference: np.ndarray | None = None) -> np.ndarray:
    from matplotlib.image import imread

    path = figure.detection_figure(tmp_path / "figure.png", scan, list(detections), reference)
    return (imread(path)[..., :3] * 255).astype(int)


def test_voxels_outside_the_brain_are_not_drawn(scan: Scan, tmp_path: Path) -> None:
    """The face is the brightest thing in the scan: painting it differently must change nothing."""
    one = detected(scan, "fae")
    before = drawn(scan, tmp_path, one)
    outside = scan.voxels == 500
    scan.voxels[outside] = np.random.default_rng(0).uniform(0, 5000, int(outside.sum()))
    assert np.array_equal(drawn(scan, tmp_path, one), before)
    scan.voxels[20, 24, 16] = 0.0
    scan.voxels[RIGHT_LESION] = 180.0
    assert not np.array_equal(drawn(scan, tmp_path, one), before)


def test_the_patients_right_is_on_the_left(scan: Scan, tmp_path: Path) -> None:
    """The lesion lies at positive R; its inferno colour must be in the left half of its panel."""
    one = detected(scan, "fae")
    keep = np.zeros(scan.shape, bool)
    keep[RIGHT_LESION] = True
    one.map, one.mask, one.findings = one.map * keep, one.mask * keep, one.findings[:1]
    assert one.findings[0].centroid_ras[0] > 10
    volumes = figure._canonical_volumes(scan, [one], None)
    view = figure._view(volumes)
    middle = next(index for index in view.slices if view.cut(volumes["masks"][0], index).any())
    columns = np.flatnonzero(view.cut(volumes["masks"][0], middle).any(axis=0))
    rows = np.flatnonzero(view.cut(volumes["masks"][0], middle).any(axis=1))
    width, height = view.cut(volumes["brain"], middle).shape[::-1]
    assert view.plane == "axial" and view.sides == ("R", "L")
    assert columns.max() < width / 2
    anterior = one.findings[0].centroid_ras[1] > 0
    assert (rows.mean() < height / 2) == anterior


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_picture_does_not_depend_on_how_the_scan_is_stored(
    scan: Scan, tmp_path: Path, order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    one = detected(scan, "fae")
    expected = drawn(scan, tmp_path, one)

    def stored(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.transpose(order)[tuple(slice(None, None, step) for step in flips)])

    affine = scan.affine.copy()
    affine[:, :3] = scan.affine[:, list(order)]
    for axis, step in enumerate(flips):
        if step < 0:
            affine[:3, 3] += affine[:3, axis] * (scan.shape[order[axis]] - 1)
            affine[:3, axis] *= -1
    other = Scan(stored(scan.voxels), affine, stem=scan.stem, contrast=scan.contrast)
    turned = detected(scan, "fae")
    for name in ("map", "mask", "brain_mask"):
        setattr(turned, name, stored(getattr(one, name)))
    assert np.array_equal(drawn(other, tmp_path, turned), expected)


def test_thick_slices_are_shown_in_their_own_plane(scan: Scan, tmp_path: Path) -> None:
    thick = scan.affine.copy()
    thick[:3, 1] *= 3
    scan.affine = thick
    one = detected(scan, "fae")
    view = figure._view(figure._canonical_volumes(scan, [one], None))
    assert view.plane == "coronal" and view.aspect == pytest.approx(1.0)
    scan.affine = np.diag([1.0, 1.2, 1.4, 1.0])
    view = figure._view(figure._canonical_volumes(scan, [one], None))
    assert view.plane == "axial" and view.aspect == pytest.approx(1.2)


def test_picture_shows_the_highest_finding_and_the_largest_part_of_the_reference(scan: Scan) -> None:
    one = detected(scan, "fae")
    lesion = np.zeros(scan.shape, bool)
    lesion[18:30, 18:30, 26] = True
    volumes = figure._canonical_volumes(scan, [one], lesion)
    slices = figure._view(volumes).slices
    assert 26 in slices and any(14 <= index < 18 for index in slices)
    assert slices == sorted(set(slices)) and 2 <= len(slices) <= figure.COLUMNS


def test_more_models_make_more_rows_up_to_the_limit(scan: Scan, tmp_path: Path) -> None:
    heights = [
        drawn(scan, tmp_path, *[detected(scan, f"model-{number}") for number in range(count)]).shape[0]
        for count in (1, 2, 4, 6)
    ]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    with_consensus = [
        *[detected(scan, f"model-{number}") for number in range(6)],
        detected(scan, "consensus"),
    ]
    assert drawn(scan, tmp_path, *with_consensus).shape[0] > heights[2]


def test_figure_refuses_nothing_to_draw(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no detection"):
        figure.detection_figure(tmp_path / "x.png", scan, [])
    one = detected(scan, "fae")
    one.brain_mask = np.zeros(scan.shape, np.uint8)
    with pytest.raises(ValueError, match="brain mask is empty"):
        figure.detection_figure(tmp_path / "x.png", scan, [one])
    assert list(tmp_path.iterdir()) == []


def test_picture_carries_no_text_metadata(scan: Scan, tmp_path: Path) -> None:
    data = figure.detection_figure(tmp_path / "x.png", scan, [detected(scan, "fae")]).read_bytes()
    assert not any(chunk in data for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME", b"eXIf"))


QUALITY = {"snr": 17.26, "cnr": None, "ghosting": None, "slice_mm": 5.5, "cut_cm2": 0.0}
DOMAIN = {
    "distance": 3.21, "limit": 2.2, "farthest": "noise", "value": 0.03, "usual": [0.002, 0.008], "deviation": 7.0,
}  # fmt: skip


def test_quality_domain_and_contrast_are_on_the_page(scan: Scan) -> None:
    contrast = {"used": "T1w", "stated": "T1w", "found": "FLAIR"}
    page = pages.report_html(scan, [detected(scan, "fae", contrast=contrast, quality=QUALITY, domain=DOMAIN)])
    assert "T1w (the image looks like FLAIR)" in page and "17.3" in page and "5.50" in page
    assert page.count("cannot be measured in this scan") == 2
    assert "3.2 (limit 2.2); farthest: noise 0.03, usual 0.002 to 0.008" in page
    page = pages.report_html(scan, [detected(scan, "fae", contrast=contrast, quality=QUALITY)])
    assert "not known: the model does not say" in page
    assert "Quality of the scan" not in pages.report_html(scan, [detected(scan, "fae")])
