"""Review and comparison as nodes: preview, verdicts, undo, accepted findings, agreement, figures, layouts, pictures."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import phantom
import pytest
import slicer
from conftest import matrix
from picture import slice_picture
from UADBenchScene import comparison, display, exports, findings, layouts, pictures, preview, results, segments, volumes

MM = phantom.affine_of(degrees=(12, -25, 40), left_handed=True)
MOVE = phantom.affine_of(spacing=(1, 1, 1), degrees=(5, 10, -15))


@pytest.fixture
def volume(scene):
    """A head on an oblique left-handed lattice under a linear transform."""
    node = scene.volume(phantom.head(), MM)
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevelMinMax(0, 900)
    node.SetAndObserveTransformNodeID(scene.transform(MOVE).GetID())
    return node


def outcome(volume, **options) -> results.Result:
    return phantom.result(volumes.world_affine(volume), **options)


@pytest.fixture
def nodes(volume):
    """The phantom's result."""
    return results.add_result(volume, outcome(volume))


def moved(volume, threshold: float) -> results.Result:
    """What the worker answers to a moved threshold."""
    found = outcome(volume, threshold=threshold)
    found.findings = [row for row in found.findings if row["peak_z"] >= threshold]
    found.map, found.operating_point = None, "user"
    return found


def mask_of(node, volume) -> np.ndarray:
    return results.mask_of(node, volume)


def keep(rgb: np.ndarray, name: str, folder: Path) -> None:
    """Write a picture; UADBENCH_PICTURES keeps it for somebody to look at."""
    folder = Path(os.environ.get("UADBENCH_PICTURES", folder))
    folder.mkdir(parents=True, exist_ok=True)
    pictures.write_png(rgb, folder / name)
    assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# -------------------------------------------------------------------------------------------------- preview


@pytest.mark.parametrize("threshold", [0.5, 3.0, 8.5, 20.0])
def test_preview_is_what_lies_above_the_threshold(volume, nodes, threshold):
    shown = preview.Preview(nodes.map)
    node = shown.show(threshold)
    np.testing.assert_array_equal(mask_of(node, volume), results.map_values(nodes.map) > threshold)
    assert not nodes.segmentation.GetDisplayNode().GetVisibility()
    assert shown.show(threshold + 1) is node, "one node for all thresholds"
    shown.hide()
    assert slicer.mrmlScene.GetNodeByID(node.GetID()) is None
    assert nodes.segmentation.GetDisplayNode().GetVisibility()


def test_preview_announces_itself_to_the_views(nodes):
    shown = preview.Preview(nodes.map)
    node, heard = shown.show(3.0), []
    for name in ("SourceRepresentationModified", "RepresentationModified"):
        event = getattr(slicer.vtkSegmentation, name)
        node.GetSegmentation().AddObserver(event, lambda *_args, name=name: heard.append(name))
    before = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap").GetMTime()
    shown.show(4.0)
    assert {"SourceRepresentationModified", "RepresentationModified"} <= set(heard)
    assert node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap").GetMTime() > before


def test_smoothing_takes_specks_away(volume, nodes):
    voxels = slicer.util.arrayFromVolume(nodes.map)
    voxels[2, 2, 2] = 9.0
    sharp, smooth = preview.Preview(nodes.map), preview.Preview(nodes.map, 3.0)
    assert mask_of(sharp.show(3.0), volume)[2, 2, 2] == 1
    sharp.hide()
    inside = mask_of(smooth.show(3.0), volume)
    assert inside[2, 2, 2] == 0 and inside[phantom.CENTRES[0]] == 1
    assert smooth.shows(nodes.map, 3.0) and not smooth.shows(nodes.map, 0.0) and not smooth.shows(None, 3.0)
    smooth.hide()


def test_nothing_keeps_a_map_that_was_removed(scene, volume):
    """Python's garbage collection set aside: a map lives as long as its node is in the scene, and no longer."""
    import gc

    nodes, gone = results.add_result(volume, outcome(volume)), []
    nodes.map.AddObserver("DeleteEvent", lambda *_args: gone.append(1))
    shown = preview.Preview(nodes.map)
    shown.show(3.0)
    shown.hide()
    results.change_threshold(nodes.map, moved(volume, 4.0))
    comparison.show_agreement(nodes.map, outcome(volume).mask, outcome(volume).mask)
    display.show_legend(nodes.map, True)
    assert results.maps_of(volume) == [nodes.map]
    scene.mrml.RemoveNode(nodes.map)
    del nodes, shown
    gc.collect()
    assert gone


def test_preview_of_a_map_that_has_gone_is_none(scene, nodes):
    shown = preview.Preview(nodes.map)
    shown.show(3.0)
    scene.mrml.RemoveNode(nodes.map)
    assert shown.show(4.0) is None
    shown.hide()


# ------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_stay_with_findings_of_the_same_peak(volume, nodes):
    findings.set_verdict(nodes.findings, 0, "accept", 'enhancing, "ring"')
    findings.set_verdict(nodes.findings, 1, "reject")
    assert not findings.is_edited(nodes.findings), "a verdict is no change of what was computed"
    changed = results.change_threshold(nodes.map, moved(volume, 7.0))
    assert changed.findings is nodes.findings
    (row,) = findings.rows_of(nodes.findings)
    assert (row["verdict"], row["comment"]) == ("accept", 'enhancing, "ring"')
    (line,) = csv.DictReader(findings.as_csv(nodes.findings).splitlines())
    assert line["verdict"] == "accept" and line["comment"] == 'enhancing, "ring"' and line["overlap"] == ""


@pytest.mark.parametrize(
    ("row", "verdict", "code"), [(9, "accept", "NO_SUCH_FINDING"), (0, "maybe", "VERDICT_UNKNOWN")]
)
def test_verdicts_that_cannot_be(nodes, row, verdict, code):
    with pytest.raises(volumes.SceneError, match=code):
        findings.set_verdict(nodes.findings, row, verdict)


def test_a_table_that_was_edited_is_left_alone(volume, nodes):
    nodes.findings.SetLocked(False)
    nodes.findings.GetTable().GetColumnByName("volume_ml").SetValue(0, 99.0)
    assert findings.is_edited(nodes.findings)
    changed = results.change_threshold(nodes.map, moved(volume, 7.0))
    assert changed.findings is not nodes.findings and len(findings.rows_of(nodes.findings)) == 2
    nodes.findings.GetTable().RemoveColumnByName("region")
    assert findings.is_edited(nodes.findings)


# ------------------------------------------------------------------------------------------------ accepted


def test_accepted_findings_become_segments_of_their_own(volume, nodes):
    findings.set_verdict(nodes.findings, 1, "accept", "old infarct")
    target = results.send_accepted(nodes.map)
    segmentation = target.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 1
    inside = mask_of(target, volume)
    assert inside[phantom.CENTRES[1]] == 1 and inside[phantom.CENTRES[0]] == 0
    text = slicer.mutable("") if hasattr(slicer, "mutable") else __import__("vtk").reference("")
    assert segmentation.GetNthSegment(0).GetTag("UADBench.Comment", text) and str(text) == "old infarct"


def test_accepted_findings_join_what_is_there_and_can_be_taken_back(scene, volume, nodes):
    target = scene.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    labels = np.zeros(phantom.SHAPE, np.uint8)
    labels[5:9, 5:9, 5:9] = 1
    segments.fill(target, volume, labels, [segments.Segment("by hand")])
    # Under another transform than the scan: what is sent must still lie where it was found.
    target.SetAndObserveTransformNodeID(scene.transform(phantom.affine_of((1, 1, 1), (0, 0, 30)), "other").GetID())
    findings.set_verdict(nodes.findings, 0, "accept")
    history = segments.History()
    before = segments.fingerprint(target)
    results.send_accepted(nodes.map, target, history)
    assert target.GetSegmentation().GetNumberOfSegments() == 2
    assert [target.GetSegmentation().GetNthSegment(k).GetName() for k in range(2)][0] == "by hand"
    sent = volumes.segments_on(target, volume)[1][1]
    own = volumes.segments_on(nodes.segmentation, volume)[0][1]
    assert (sent & own).sum() / (sent | own).sum() > 0.97
    assert history.can_undo(target)
    history.undo(target)
    assert segments.fingerprint(target) == before and not history.can_undo(target)


def test_nothing_accepted_is_said(nodes):
    with pytest.raises(volumes.SceneError, match="NOTHING_ACCEPTED"):
        results.send_accepted(nodes.map)


# ----------------------------------------------------------------------------------------------------- undo


def test_undo_brings_segments_table_and_display_back(volume, nodes):
    history = segments.History()
    findings.set_verdict(nodes.findings, 1, "unsure")
    before = (segments.fingerprint(nodes.segmentation), findings.as_csv(nodes.findings))
    results.change_threshold(nodes.map, moved(volume, 7.0), history)
    results.change_threshold(nodes.map, moved(volume, 20.0), history)
    assert findings.rows_of(nodes.findings) == []
    assert results.undo(nodes.map, history) and len(findings.rows_of(nodes.findings)) == 1
    assert results.undo(nodes.map, history)
    assert (segments.fingerprint(nodes.segmentation), findings.as_csv(nodes.findings)) == before
    assert nodes.map.GetDisplayNode().GetLowerThreshold() == 3.0
    assert nodes.map.GetAttribute("UADBench.OperatingPoint") == "fpr-1pct"
    assert not segments.is_edited(nodes.segmentation) and not findings.is_edited(nodes.findings)
    np.testing.assert_allclose(
        findings.place_of(nodes.findings, 0), (volumes.world_affine(volume) @ [*phantom.CENTRES[0], 1])[:3], atol=1e-4
    )
    assert not results.undo(nodes.map, history), "there is nothing before that"


def test_as_many_states_as_are_kept_can_be_gone_back_to(volume, nodes):
    history, marks = segments.History(), []
    for threshold in (4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0):
        marks.append(segments.fingerprint(nodes.segmentation))
        results.change_threshold(nodes.map, moved(volume, threshold), history)
    for mark in marks[: -history.STATES - 1 : -1]:
        assert results.undo(nodes.map, history) and segments.fingerprint(nodes.segmentation) == mark
    assert not results.undo(nodes.map, history)


def test_states_of_what_was_touched_long_ago_are_forgotten(volume):
    history = segments.History()
    made = [results.add_result(volume, outcome(volume)) for _number in range(history.SEGMENTATIONS + 1)]
    for entry in made[:-1]:
        results.change_threshold(entry.map, moved(volume, 7.0), history)
    results.change_threshold(made[0].map, moved(volume, 8.0), history)
    results.change_threshold(made[-1].map, moved(volume, 7.0), history)
    assert [history.can_undo(entry.segmentation) for entry in made] == [True, False] + [True] * (len(made) - 2)


# ---------------------------------------------------------------------------------------- one segment, empty


def test_all_findings_in_one_segment(volume):
    nodes = results.add_result(volume, outcome(volume), one_segment=True)
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    np.testing.assert_array_equal(mask_of(nodes.segmentation, volume), outcome(volume).mask)
    changed = results.change_threshold(nodes.map, moved(volume, 7.0))
    assert changed.segmentation.GetSegmentation().GetNumberOfSegments() == 1, "the choice holds for the result"
    results.change_threshold(nodes.map, moved(volume, 20.0))
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 0


def test_the_highest_value_has_a_place(volume, nodes):
    value, place = results.highest(nodes.map)
    assert value == 9.0
    np.testing.assert_allclose(place, (volumes.world_affine(volume) @ [*phantom.CENTRES[0], 1])[:3], atol=1e-6)


def test_reconstruction_and_residual_lie_on_the_scan(volume):
    found = outcome(volume)
    found.reconstruction, found.residual = found.map + 1, found.map - 1
    nodes = results.nodes_of(results.add_result(volume, found).map)
    for node, values in ((nodes.reconstruction, found.reconstruction), (nodes.residual, found.residual)):
        np.testing.assert_array_equal(results.map_values(node), values)
        np.testing.assert_allclose(volumes.world_affine(node), volumes.world_affine(volume))
        assert not node.GetDisplayNode().GetAutoWindowLevel()
    assert results.maps_of(volume) == [nodes.map], "neither is a map"


# -------------------------------------------------------------------------------------------------- display


def test_legend_of_one_map_at_a_time(volume):
    first, second = (results.add_result(volume, outcome(volume, model=name)).map for name in ("a", "b"))
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode
    display.show_legend(first, True)
    assert legend(first).GetVisibility() and not legend(second).GetVisibility()
    assert legend(first).GetTitleText() == "a\nanomaly (z)"
    display.show_legend(second, True)
    assert not legend(first).GetVisibility() and legend(second).GetVisibility()
    display.show_legend(second, False)
    assert not legend(second).GetVisibility()


def test_flicker_without_a_view_shows_nothing(scene, nodes):
    assert display.flicker(scene.mrml, 0.7) is False


# ----------------------------------------------------------------------------------------------- comparison


@pytest.fixture
def reference(volume):
    """A mask that shares half of the first finding and has a lesion that was missed."""
    mask = np.zeros(phantom.SHAPE, np.uint8)
    mask[62:80, 60:80, 40:60] = 1
    mask[20:26, 90:96, 50:56] = 1
    return mask


def test_agreement_is_found_false_and_missed(volume, nodes, reference, tmp_path, scene):
    mask = outcome(volume).mask
    node = comparison.show_agreement(nodes.map, mask, reference)
    parts = dict(volumes.segments_on(node, volume))
    assert list(parts) == ["found (TP)", "false (FP)", "missed (FN)"]
    np.testing.assert_array_equal(parts["found (TP)"], (mask & reference) > 0)
    np.testing.assert_array_equal(parts["false (FP)"], (mask > 0) & (reference == 0))
    np.testing.assert_array_equal(parts["missed (FN)"], (mask == 0) & (reference > 0))
    assert comparison.show_agreement(nodes.map, mask, reference * 0) is node, "it is changed in place"
    node.GetSegmentation().GetNthSegment(0).SetName("mine")
    assert comparison.show_agreement(nodes.map, mask, reference) is not node, "unless somebody edited it"
    nodes.segmentation = comparison.show_agreement(nodes.map, mask, reference)
    place = (volumes.world_affine(volume) @ [*phantom.CENTRES[0], 1])[:3]
    rgb = np.concatenate([slice_picture(scene, nodes, name, place)[0] for name in ("Axial", "Coronal", "Sagittal")], 1)
    keep(rgb, "slicer-agreement.png", tmp_path)
    for colour in (segments.TRUE, segments.FALSE, segments.MISSED):
        assert (np.abs(rgb - np.round(255 * np.array(colour))) < 2).all(axis=-1).sum() > 50


def test_colours_of_agreement_stay_apart_without_red_or_green():
    """Seen through Viénot's simulations of protanopia and deuteranopia, every pair keeps a distance."""
    simulations = (
        np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]),
        np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]),
    )
    linear = [np.array(colour) ** 2.2 for _name, colour in comparison.AGREEMENT]
    for simulation in simulations:
        seen = [np.clip(simulation @ colour, 0, 1) ** (1 / 2.2) for colour in linear]
        distances = [np.linalg.norm(seen[a] - seen[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert min(distances) > 0.25


METRICS = {
    "dice": 0.5, "average_precision": 0.6, "best_dice": 0.7, "hausdorff_mm": 12.5, "percentile": 95.0, "lesions": 2,
    "lesions_hit": 1, "lesions_missed": 1, "findings_true": 1, "findings_false": None, "lesion_recall": 0.5,
    "lesion_precision": None, "reference_ml": 10.0, "mask_ml": 8.0,
}  # fmt: skip


def test_models_share_one_table_and_a_model_compared_again_has_one_row(volume, nodes, tmp_path):
    other = results.add_result(volume, outcome(volume, model="fae-t1w-compact"))
    table = comparison.add_to_table(nodes.map, "truth", METRICS)
    assert comparison.add_to_table(other.map, "truth", METRICS | {"dice": 0.1}) is table
    comparison.add_to_table(nodes.map, "truth", METRICS | {"dice": 0.55})
    rows = comparison.rows_of(table)
    assert [(row["model"], row["dice"]) for row in rows] == [("fae-t1w-compact", 0.1), ("disyre-t1w-compact", 0.55)]
    assert math.isnan(rows[0]["lesion_precision"]) and rows[0]["findings_false"] == -1
    assert rows[0]["threshold"] == 3.0 and rows[0]["reference"] == "truth"
    written = exports.write_tables(nodes.map, tmp_path, "case")
    names = [path.name for path in written]
    assert names == ["case_model-disyre-t1w-compact_desc-reader_findings.csv", "case_comparison.csv"]
    with written[1].open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert lines[0]["findings_false"] == "" and lines[0]["lesion_precision"] == "" and lines[1]["dice"] == "0.55"


def test_a_chart_has_one_curve_a_model(volume, nodes):
    other = results.add_result(volume, outcome(volume, model="fae-t1w-compact"))
    chart = comparison.add_curve(nodes.map, [0.0, 1.0, 2.0], [0.1, 0.5, None])
    assert comparison.add_curve(other.map, [0.0, 1.0], [0.2, 0.3]) is chart
    comparison.add_curve(nodes.map, [0.0, 1.0], [0.1, 0.6])
    assert chart.GetNumberOfPlotSeriesNodes() == 2
    series = [chart.GetNthPlotSeriesNode(k) for k in range(2)]
    assert len({series[k].GetColor() for k in range(2)}) == 2
    table = series[0].GetTableNode().GetTable()
    assert table.GetNumberOfRows() == 2 and table.GetColumnByName("dice").GetValue(1) == 0.6
    assert (series[0].GetXColumnName(), series[0].GetYColumnName()) == ("threshold", "dice")


# --------------------------------------------------------------------------------------- masks on other voxels


@pytest.mark.parametrize("kind", ["LabelMapVolume", "ScalarVolume", "Segmentation"])
@pytest.mark.parametrize(
    "spacing", [(1.8, 1.7, 1.9), (0.9, 0.85, 0.95), (3.7, 3.3, 5.5)], ids=["same", "finer", "coarser"]
)
def test_references_of_all_kinds_land_where_they_are(scene, volume, kind, spacing):
    """A ball, drawn on another oblique grid, is found at the same world place on the scan's voxels."""
    shape = tuple(round(n * a / b) for n, a, b in zip(phantom.SHAPE, (1.8, 1.7, 1.9), spacing, strict=True))
    affine = phantom.affine_of(spacing=spacing, degrees=(12, -25, 40), left_handed=True, shape=shape)
    centre = (volumes.world_affine(volume) @ [50, 60, 52, 1])[:3]
    turned = MOVE @ affine
    places = np.moveaxis(np.indices(shape), 0, -1) @ turned[:3, :3].T + turned[:3, 3]
    ball = (np.linalg.norm(places - centre, axis=-1) < 22).astype(np.uint8)
    base = scene.volume(ball, affine, name="truth", kind="ScalarVolume" if kind == "Segmentation" else kind)
    base.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node = base
    if kind == "Segmentation":
        node = scene.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "truth")
        segments.fill(node, base, ball, [segments.Segment("ball")])
    mask, resampled = volumes.read_mask(node, volume)
    assert resampled == (spacing != (1.8, 1.7, 1.9))
    world = volumes.world_affine(volume)
    own = np.moveaxis(np.indices(phantom.SHAPE), 0, -1) @ world[:3, :3].T + world[:3, 3]
    expected = np.linalg.norm(own - centre, axis=-1) < 22
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > (0.9 if spacing[0] > 2 else 0.95)
    np.testing.assert_allclose(own[mask > 0].mean(axis=0), places[ball > 0].mean(axis=0), atol=0.3)


def test_nearest_voxels_are_exact_on_halved_and_doubled_grids(scene):
    """On a grid of half the spacing each voxel of the source covers eight of the target, and the other way round."""
    coarse, fine = np.diag([2.0, 2.0, 2.0, 1.0]), np.eye(4)
    fine[:3, 3] = -0.5
    labels = np.random.default_rng(0).integers(0, 2, (6, 5, 4)).astype(np.uint8)
    big = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    source, target = scene.volume(labels, coarse, kind="LabelMapVolume"), scene.volume(big * 1.0, fine)
    np.testing.assert_array_equal(volumes.read_mask(source, target)[0], big)


def test_between_two_voxels_the_one_with_the_higher_index_counts(scene):
    """On grids that share their first voxel, one of twice the spacing, every other centre is on a border."""
    labels = np.random.default_rng(0).integers(0, 2, (6, 5, 4)).astype(np.uint8)
    index = [(np.arange(2 * n - 1) + 1) // 2 for n in labels.shape]
    expected = labels[np.ix_(*index)]
    for number in range(8):
        fine = phantom.affine_of((1.1, 0.9, 1.3), (7 * number, -31, 13 * number), left_handed=bool(number % 2))
        source = scene.volume(labels, fine @ np.diag([2.0, 2.0, 2.0, 1.0]), kind="LabelMapVolume")
        mask = volumes.read_mask(source, scene.volume(expected * 1.0, fine))[0]
        np.testing.assert_array_equal(mask, expected)


def test_a_mask_elsewhere_or_empty(scene, volume):
    far = np.eye(4)
    far[:3, 3] = 5000
    with pytest.raises(volumes.SceneError, match="MASK_OUTSIDE"):
        volumes.read_mask(scene.volume(np.ones((4, 4, 4), np.uint8), far, kind="LabelMapVolume"), volume)
    empty = scene.volume(np.zeros((4, 4, 4), np.uint8), far, kind="LabelMapVolume")
    assert not volumes.read_mask(empty, volume)[0].any(), "an empty reference is a reference"
    with pytest.raises(volumes.SceneError, match="EMPTY_VOLUME"):
        volumes.read_mask(scene.mrml.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode"), volume)
    with pytest.raises(volumes.SceneError, match="FILE_UNREADABLE"):
        volumes.load_reference(scene.mrml, "/nowhere/truth.nii.gz")


# -------------------------------------------------------------------------------------------------- layouts


@pytest.fixture
def views(scene):
    """Layout node, and the slice views that a layout manager would make."""
    layout = scene.mrml.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    made = []
    for number in range(1, layouts.VIEWS + 1):
        for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
            node = slicer.mrmlScene.CreateNodeByClass(kind)
            node.SetLayoutName(f"UADBench{number}")
            made.append(scene.mrml.AddNode(node))
    return layout, made[0::2], made[1::2]


@pytest.mark.parametrize("name", list(layouts.LAYOUTS))
def test_layouts_are_well_formed_and_left_again(scene, views, name):
    layout, _slices, _composites = views
    before = layouts.enter(scene.mrml, name)
    assert before == layout.SlicerLayoutFourUpView
    assert layout.GetCurrentLayoutDescription() == layouts.LAYOUTS[name]
    assert layout.GetLayoutRootElement() is not None
    layouts.leave(scene.mrml, before)
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView


def test_a_layout_that_the_user_chose_meanwhile_stays(scene, views):
    layout, _slices, _composites = views
    before = layouts.enter(scene.mrml, "side by side")
    layout.SetViewArrangement(layout.SlicerLayoutOneUpRedSliceView)
    layouts.leave(scene.mrml, before)
    assert layout.GetViewArrangement() == layout.SlicerLayoutOneUpRedSliceView


def test_without_layouts_nothing_happens(scene):
    assert layouts.enter(scene.mrml, "side by side") is None
    layouts.leave(scene.mrml, None)


def test_scan_map_and_reference_side_by_side(scene, views, volume, nodes):
    _layout, slices, composites = views
    truth = scene.volume(np.ones(phantom.SHAPE, np.uint8), MM, kind="LabelMapVolume")
    layouts.show_side_by_side(nodes.map, truth, 0.6)
    assert [c.GetBackgroundVolumeID() for c in composites[:3]] == [volume.GetID()] * 3
    assert [c.GetForegroundVolumeID() for c in composites[:3]] == [None, nodes.map.GetID(), None]
    assert composites[1].GetForegroundOpacity() == 0.6 and composites[2].GetLabelVolumeID() == truth.GetID()
    assert all(c.GetLinkedControl() for c in composites[:3]) and composites[3].GetBackgroundVolumeID() is None
    shown = nodes.segmentation.GetDisplayNode()
    assert shown.IsDisplayableInView(slices[1].GetID()) and not shown.IsDisplayableInView(slices[0].GetID())
    layouts.release(scene.mrml)
    assert shown.IsDisplayableInView(slices[0].GetID())


def test_a_segmentation_as_reference_is_seen_in_its_own_view(scene, views, volume, nodes):
    _layout, slices, _composites = views
    truth = scene.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "truth")
    truth.CreateDefaultDisplayNodes()
    layouts.show_side_by_side(nodes.map, truth, 0.6)
    seen = [truth.GetDisplayNode().IsDisplayableInView(view.GetID()) for view in slices[:3]]
    assert seen == [False, False, True]


def test_models_in_a_grid_show_their_own_findings(scene, views, volume):
    _layout, slices, composites = views
    made = [results.add_result(volume, outcome(volume, model=f"m{k}")) for k in range(4)]
    layouts.show_models([one.map for one in made], 0.7)
    assert [c.GetForegroundVolumeID() for c in composites[:4]] == [one.map.GetID() for one in made]
    for number, one in enumerate(made):
        shown = one.segmentation.GetDisplayNode()
        assert [shown.IsDisplayableInView(view.GetID()) for view in slices[:4]] == [k == number for k in range(4)]


def test_findings_in_3d_and_the_curve(scene, views, volume, nodes):
    plot = scene.mrml.AddNewNodeByClass("vtkMRMLPlotViewNode")
    layouts.show_3d(nodes.map, 0.7)
    name = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    assert nodes.segmentation.GetSegmentation().ContainsRepresentation(name)
    chart = comparison.add_curve(nodes.map, [0.0, 1.0], [0.1, 0.6])
    layouts.show_curve(nodes.map, 0.7)
    assert plot.GetPlotChartNodeID() == chart.GetID()


# ------------------------------------------------------------------------------------------------- pictures


def test_one_picture_for_each_finding(volume, nodes, tmp_path):
    written = pictures.write_pictures(nodes.map, tmp_path, "case")
    names = [path.name for path in written]
    assert names == [f"case_model-disyre-t1w-compact_finding-0{k}.png" for k in (1, 2)]
    rgb = pictures.picture_of(nodes.map, 0)
    keep(rgb, "slicer-finding.png", tmp_path)
    size = pictures.SIZE
    assert rgb.shape == (2 * size, 3 * size, 3)
    scan, over = rgb[:size].astype(int), rgb[size:].astype(int)
    assert (np.ptp(scan, axis=-1) > 40).mean() < 0.01, "above, the scan is grey but for the marks"
    assert 0.005 < (np.ptp(over, axis=-1) > 40).mean() < 0.12
    marks = np.argwhere((np.abs(scan - np.round(255 * np.array(segments.MISSED))) < 2).all(axis=-1))
    assert len(marks) > 60


def test_pictures_agree_with_slicers_own_slices(scene, volume, nodes):
    """The middle of the finding is as warm in the picture as in what Slicer's slice logic composes."""
    place = findings.place_of(nodes.findings, 0)
    _rgb, pixel = slice_picture(scene, nodes, "Axial", place, size=pictures.SIZE, field_mm=pictures.FIELD_MM)
    own = pictures.picture_of(nodes.map, 0)[pictures.SIZE :, : pictures.SIZE]
    warm = np.argwhere((own[..., 0].astype(int) - own[..., 2] > 60) & (own[..., 0] > 200))
    np.testing.assert_allclose(warm.mean(axis=0), pixel, atol=6)


def test_no_finding_no_picture(volume, tmp_path):
    empty = outcome(volume, threshold=99.0)
    empty.findings = []
    assert pictures.write_pictures(results.add_result(volume, empty).map, tmp_path, "case") == []


def test_matrix_helpers_are_inverse():
    np.testing.assert_allclose(volumes.array_of(volumes.matrix_of(MM)), MM)
    np.testing.assert_allclose(volumes.array_of(matrix(MM)), MM)
