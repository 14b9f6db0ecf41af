"""Results as nodes: in the right place, never over somebody's work, and still there after saving."""

from __future__ import annotations

import json

import numpy as np
import phantom
import pytest
import slicer
import vtk
from conftest import ROOT, Scene, matrix
from UADBenchScene import display, findings, results, segments, volumes
from vtk.util.numpy_support import vtk_to_numpy

MM = {"oblique": phantom.affine_of(degrees=(12, -25, 40)), "left-handed": phantom.affine_of(left_handed=True)}
MOVE = phantom.affine_of(spacing=(1, 1, 1), degrees=(5, 10, -15))


@pytest.fixture(params=["oblique", "left-handed", "transformed"])
def volume(request, scene):
    """A head on an oblique or left-handed lattice, or under a linear transform."""
    node = scene.volume(phantom.head(), MM.get(request.param, MM["oblique"]))
    if request.param == "transformed":
        node.SetAndObserveTransformNodeID(scene.transform(MOVE).GetID())
    return node


def add(volume, **options) -> results.ResultNodes:
    """Add the phantom's result for a volume."""
    return results.add_result(volume, phantom.result(volumes.world_affine(volume), **options))


def brightest_place(node) -> np.ndarray:
    """Return the world place of a volume's highest voxel, by VTK's own means."""
    voxels = slicer.util.arrayFromVolume(node)
    k, j, i = np.unravel_index(np.argmax(voxels), voxels.shape)
    to_ras, to_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(to_ras)
    if node.GetParentTransformNode() is not None:
        node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    return np.array(to_world.MultiplyPoint(to_ras.MultiplyPoint((i, j, k, 1.0))))[:3]


def segment_places(node, index: int) -> np.ndarray:
    """Return the world places, shape (N, 3), of a segment's voxels, from its label map's own geometry."""
    segment = node.GetSegmentation().GetNthSegment(index)
    image = segment.GetRepresentation("Binary labelmap")
    voxels = vtk_to_numpy(image.GetPointData().GetScalars())
    kji = np.argwhere(voxels.reshape(image.GetDimensions()[::-1]) == segment.GetLabelValue())
    ijk = kji[:, ::-1] + np.array(image.GetExtent()[::2])
    to_ras, to_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_ras)
    if node.GetParentTransformNode() is not None:
        node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    vtk.vtkMatrix4x4.Multiply4x4(to_world, to_ras, to_ras)
    return np.array([to_ras.MultiplyPoint((*index_, 1.0))[:3] for index_ in ijk])


# ---------------------------------------------------------------------------------------------------- place


def test_map_segmentation_and_table_agree_on_the_place_of_the_peak(volume):
    nodes = add(volume)
    expected = (volumes.world_affine(volume) @ [*phantom.CENTRES[0], 1])[:3]
    np.testing.assert_allclose(brightest_place(nodes.map), expected, atol=1e-4)
    np.testing.assert_allclose(findings.place_of(nodes.findings, 0), expected, atol=1e-4)
    places = segment_places(nodes.segmentation, 0)
    np.testing.assert_allclose(places.mean(axis=0), expected, atol=0.3)
    assert np.linalg.norm(places - expected, axis=1).min() < 1e-3


def test_map_is_on_the_lattice_of_the_input(volume):
    nodes = add(volume)
    assert nodes.map.GetImageData().GetDimensions() == volume.GetImageData().GetDimensions()
    assert nodes.map.GetTransformNodeID() == volume.GetTransformNodeID()
    assert nodes.segmentation.GetTransformNodeID() == volume.GetTransformNodeID()
    np.testing.assert_allclose(volumes.world_affine(nodes.map), volumes.world_affine(volume), atol=1e-9)
    voxels = slicer.util.arrayFromVolume(nodes.map).transpose(2, 1, 0)
    np.testing.assert_array_equal(voxels, phantom.result(MM["oblique"]).map)
    assert voxels.dtype == np.float32


def test_findings_follow_a_transform_that_is_moved_later(scene, volume):
    nodes = add(volume)
    before = findings.place_of(nodes.findings, 0)
    move = scene.transform(phantom.affine_of(spacing=(1, 1, 1), degrees=(40, 0, 9)), "later")
    for node in (volume, nodes.map, nodes.segmentation):
        node.SetAndObserveTransformNodeID(move.GetID())
    after = findings.place_of(nodes.findings, 0)
    np.testing.assert_allclose(after, brightest_place(nodes.map), atol=1e-4)
    assert np.linalg.norm(after - before) > 1


def test_jumping_to_a_finding_centres_the_slice_on_it(scene, volume):
    nodes = add(volume)
    view = scene.mrml.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetOrientationToAxial()
    place = findings.place_of(nodes.findings, 1)
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene.mrml, *place, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    to_ras = view.GetSliceToRAS()
    np.testing.assert_allclose([to_ras.GetElement(k, 3) for k in range(3)], place, atol=1e-6)
    with pytest.raises(volumes.SceneError, match="NO_SUCH_FINDING"):
        findings.place_of(nodes.findings, 2)


# -------------------------------------------------------------------------------------------------- display


def test_scale_is_fixed_and_shared_by_all_models(volume):
    first, second = add(volume), add(volume, model="fae-t1w-compact", centres=phantom.CENTRES[:1])
    for nodes in (first, second):
        shown = nodes.map.GetDisplayNode()
        assert not shown.GetAutoWindowLevel()
        assert (shown.GetWindowLevelMin(), shown.GetWindowLevelMax()) == display.SCALE
        assert shown.GetApplyThreshold() and shown.GetLowerThreshold() == 3.0
        assert shown.GetUpperThreshold() > 1e20
    assert first.map.GetDisplayNode().GetColorNodeID() == second.map.GetDisplayNode().GetColorNodeID()


def test_colours_rise_in_lightness_for_any_colour_vision(scene):
    node = display.colours(scene.mrml)
    assert display.colours(scene.mrml) is node
    rgb = np.array([node.GetLookupTable().GetTableValue(i)[:3] for i in range(node.GetNumberOfColors())])
    lightness = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]
    assert len(rgb) == 256 and np.all(np.diff(lightness) > 0)
    assert lightness[0] < 0.02 and lightness[-1] > 0.85


def test_outlines_leave_the_map_visible(volume):
    display = add(volume).segmentation.GetDisplayNode()
    assert display.GetVisibility2DOutline() and not display.GetVisibility2DFill()


# ---------------------------------------------------------------------------------------------- description


def test_nodes_say_where_they_come_from(volume):
    nodes = add(volume)
    assert nodes.map.GetName() == "sub-1_T1w anomaly map (disyre-t1w-compact)"
    assert nodes.segmentation.GetName() == "sub-1_T1w anomalies (disyre-t1w-compact)"
    assert nodes.findings.GetName() == "sub-1_T1w findings (disyre-t1w-compact)"
    for node, role in (
        (nodes.map, "map"),
        (nodes.segmentation, "segmentation"),
        (nodes.findings, "findings"),
    ):
        assert results.input_of(node) is volume
        assert node.GetAttribute("UADBench.Role") == role
        assert node.GetAttribute("UADBench.Model") == "disyre-t1w-compact"
        assert node.GetAttribute("UADBench.Threshold") == "3"
        assert node.GetAttribute("UADBench.OperatingPoint") == "fpr-1pct"
        assert node.GetAttribute("UADBench.Origin") == "20 healthy scans"
        assert node.GetAttribute("UADBench.Unit") == "z"
    found = results.nodes_of(nodes.map)
    assert (found.segmentation, found.findings) == (nodes.segmentation, nodes.findings)
    assert results.is_map(nodes.map) and not results.is_map(volume) and not results.is_map(None)


def test_segments_are_named_tagged_and_placed_by_finding(volume):
    segmentation = add(volume).segmentation.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 2
    names = [segmentation.GetNthSegment(k).GetName() for k in range(2)]
    assert names == ["finding 1, peak 9.0 z", "finding 2, peak 6.5 z"]
    segment = segmentation.GetNthSegment(0)
    tags = {name: vtk.reference("") for name in ("Model", "Threshold", "OperatingPoint", "PeakZ")}
    assert all(segment.GetTag(f"UADBench.{name}", value) for name, value in tags.items())
    assert [str(v) for v in tags.values()] == ["disyre-t1w-compact", "3", "fpr-1pct", "9"]
    entry = vtk.reference("")
    assert segment.GetTag("TerminologyEntry", entry) and "52988006^Lesion" in str(entry)


def test_terminology_file_has_the_term_of_the_segments():
    path = ROOT / "UADBench" / "Resources" / "UADBench.term.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    context, category, kind, *_rest = segments.TERMINOLOGY.split("~")
    assert document["SegmentationCategoryTypeContextName"] == context
    found = document["SegmentationCodes"]["Category"][0]
    assert category == f"SCT^{found['CodeValue']}^{found['CodeMeaning']}"
    assert kind == f"SCT^{found['Type'][0]['CodeValue']}^{found['Type'][0]['CodeMeaning']}"
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    assert logic.LoadTerminologyFromFile(str(path)) == context


def test_table_has_the_columns_of_the_command_line(volume):
    from UADBenchLib.inference.findings import COLUMNS

    assert tuple(name for name, *_rest in findings.COLUMNS) == COLUMNS
    table = add(volume).findings
    rows = findings.rows_of(table)
    assert [row["index"] for row in rows] == [1, 2] and rows[0]["peak_z"] == 9.0
    assert np.isnan(rows[0]["overlap"]) and rows[0]["status"] == ""
    assert table.GetColumnUnitLabel("volume_ml") == "ml" and table.GetLocked()


def test_status_of_a_finding_has_its_colour(volume):
    outcome = phantom.result(volumes.world_affine(volume))
    outcome.findings[0]["status"], outcome.findings[1]["status"] = "TP", "FP"
    segmentation = results.add_result(volume, outcome).segmentation.GetSegmentation()
    assert segmentation.GetNthSegment(0).GetColor() != segmentation.GetNthSegment(1).GetColor()


# --------------------------------------------------------------------------------------- number of findings


def test_no_finding_is_a_result(volume):
    outcome = phantom.result(volumes.world_affine(volume), threshold=99.0)
    outcome.findings = []
    nodes = results.add_result(volume, outcome)
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 0
    assert findings.rows_of(nodes.findings) == []
    assert nodes.map.GetImageData().GetScalarRange()[1] == 9.0


def test_many_findings_share_the_last_segment(volume):
    centres = [(10 + 10 * i, 10 + 10 * j, 50) for i in range(8) for j in range(8)]
    nodes = add(volume, centres=centres)
    segmentation = nodes.segmentation.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == segments.SEGMENTS + 1
    last = segmentation.GetNthSegment(segments.SEGMENTS)
    assert last.GetName() == f"{results.OTHER_FINDINGS} ({len(centres) - segments.SEGMENTS})"
    assert len(findings.rows_of(nodes.findings)) == len(centres)
    counted = sum(len(segment_places(nodes.segmentation, k)) for k in range(segments.SEGMENTS + 1))
    assert counted == int(phantom.result(MM["oblique"], centres=centres).mask.sum())


# ------------------------------------------------------------------------------------------ second thoughts


def test_a_second_run_makes_new_nodes(volume):
    first, second = add(volume), add(volume, threshold=5.0)
    ids = {node.GetID() for nodes in (first, second) for node in (nodes.map, nodes.segmentation, nodes.findings)}
    assert len(ids) == 6
    assert first.map.GetAttribute("UADBench.Threshold") == "3"


def moved(volume, threshold: float) -> results.Result:
    """Return the worker's answer to a moved threshold, which has no map."""
    outcome = phantom.result(volumes.world_affine(volume), threshold=threshold)
    outcome.findings = [row for row in outcome.findings if row["peak_z"] >= threshold]
    outcome.map, outcome.operating_point = None, "user"
    return outcome


def test_moving_the_threshold_changes_the_nodes_of_the_result(volume):
    nodes = add(volume)
    before = len(segment_places(nodes.segmentation, 0))
    changed = results.change_threshold(nodes.map, moved(volume, 7.0))
    assert (changed.map, changed.segmentation, changed.findings) == (
        nodes.map,
        nodes.segmentation,
        nodes.findings,
    )
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert 0 < len(segment_places(nodes.segmentation, 0)) < before
    assert [row["peak_z"] for row in findings.rows_of(nodes.findings)] == [9.0]
    assert nodes.map.GetDisplayNode().GetLowerThreshold() == 7.0
    assert nodes.findings.GetAttribute("UADBench.Threshold") == "7"
    assert nodes.segmentation.GetAttribute("UADBench.OperatingPoint") == "user"


@pytest.mark.parametrize("edit", ["rename", "remove", "paint"])
def test_an_edited_segmentation_is_left_alone(volume, edit):
    nodes = add(volume)
    segmentation = nodes.segmentation.GetSegmentation()
    assert not segments.is_edited(nodes.segmentation)
    if edit == "rename":
        segmentation.GetNthSegment(0).SetName("metastasis?")
    elif edit == "remove":
        segmentation.RemoveSegment(segmentation.GetNthSegmentID(1))
    else:
        segmentation.GetNthSegment(0).GetRepresentation("Binary labelmap").SetScalarComponentFromDouble(3, 3, 3, 0, 1)
    assert segments.is_edited(nodes.segmentation)
    kept = [segmentation.GetNthSegment(k).GetName() for k in range(segmentation.GetNumberOfSegments())]
    changed = results.change_threshold(nodes.map, moved(volume, 7.0))
    assert changed.segmentation is not nodes.segmentation
    assert kept == [segmentation.GetNthSegment(k).GetName() for k in range(segmentation.GetNumberOfSegments())]
    again = results.change_threshold(nodes.map, moved(volume, 4.0))
    assert again.segmentation is changed.segmentation


def test_removed_nodes_come_back_with_the_next_threshold(scene, volume):
    nodes = add(volume)
    scene.mrml.RemoveNode(nodes.segmentation)
    scene.mrml.RemoveNode(nodes.findings)
    changed = results.change_threshold(nodes.map, moved(volume, 4.0))
    assert changed.segmentation.GetSegmentation().GetNumberOfSegments() == 2
    assert len(findings.rows_of(changed.findings)) == 2


def test_a_volume_that_changed_or_left_is_refused(scene, volume):
    outcome = phantom.result(volumes.world_affine(volume))
    nodes = results.add_result(volume, outcome)
    count = scene.mrml.GetNumberOfNodes()
    volume.SetAndObserveImageData(volumes.image_of(np.zeros((3, 4, 5)), np.float32))
    with pytest.raises(volumes.SceneError, match="LATTICE_CHANGED"):
        results.add_result(volume, outcome)
    scene.mrml.RemoveNode(volume)
    with pytest.raises(volumes.SceneError, match="SCENE_CLOSED"):
        results.add_result(volume, outcome)
    with pytest.raises(volumes.SceneError, match="SCENE_CLOSED"):
        results.change_threshold(nodes.map, moved(nodes.map, 4.0))
    assert scene.mrml.GetNumberOfNodes() == count - 1, "a refusal adds nothing"


def test_results_join_the_study_of_the_input(scene):
    volume = scene.volume(phantom.head(), MM["oblique"])
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene.mrml)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, volume)
    nodes = add(volume)
    for node in (nodes.map, nodes.segmentation, nodes.findings):
        item = hierarchy.GetItemByDataNode(node)
        # slicer-core has no plugin that makes items of new nodes; the application has.
        if item:
            assert hierarchy.GetItemParent(item) == study
    hierarchy.CreateItem(hierarchy.GetSceneItemID(), nodes.map)
    results._place_beside(volume, nodes.map)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(nodes.map)) == study


# --------------------------------------------------------------------------------------------------- saving


def save(scene: Scene, nodes: results.ResultNodes, volume, folder) -> str:
    """Save a scene as the application does: each node's data in a file, and the scene beside them."""
    colours = nodes.map.GetDisplayNode().GetColorNode()
    kinds = [(volume, "VolumeArchetype", "nrrd"), (nodes.map, "VolumeArchetype", "nrrd")]
    kinds += [(nodes.segmentation, "Segmentation", "seg.nrrd"), (nodes.findings, "Table", "tsv")]
    kinds += [(colours, "ColorTable", "ctbl")]
    for number, (node, kind, suffix) in enumerate(kinds):
        storage = scene.mrml.AddNewNodeByClass(f"vtkMRML{kind}StorageNode")
        storage.SetFileName(str(folder / f"node{number}.{suffix}"))
        node.SetAndObserveStorageNodeID(storage.GetID())
        assert storage.WriteData(node) == 1, storage.GetFileName()
    scene.mrml.SetURL(str(folder / "scene.mrml"))
    assert scene.mrml.Commit()
    return scene.mrml.GetURL()


@pytest.fixture
def restored(volume, scene, tmp_path):
    """The nodes of a result before saving, and its map after reading the saved scene into another."""
    nodes = add(volume)
    url = save(scene, nodes, volume, tmp_path)
    other = Scene()
    other.mrml.SetURL(url)
    assert other.mrml.Connect()
    yield nodes, other.mrml.GetFirstNodeByName(nodes.map.GetName()), other
    other.mrml.Clear(1)


def test_a_saved_result_is_restored(restored):
    before, after, _other = restored
    found = results.nodes_of(after)
    assert results.input_of(after).GetName() == "sub-1_T1w"
    assert found.segmentation.GetName() == before.segmentation.GetName()
    for part in ("map", "segmentation", "findings"):
        old, new = getattr(before, part), getattr(found, part)
        for name in ("Role", "Model", "Threshold", "OperatingPoint", "Origin", "Unit", "Summary"):
            assert new.GetAttribute(f"UADBench.{name}") == old.GetAttribute(f"UADBench.{name}")
    assert json.loads(after.GetAttribute("UADBench.Summary")) == phantom.result(MM["oblique"]).summary
    old_rows, new_rows = findings.rows_of(before.findings), findings.rows_of(found.findings)
    for old, new in zip(old_rows, new_rows, strict=True):
        numbers = {name: value for name, value in old.items() if isinstance(value, float)}
        assert {name: new[name] for name in numbers} == pytest.approx(numbers, abs=1e-4, nan_ok=True)
        assert [new[name] for name in ("index", "region", "status")] == [
            old[name] for name in ("index", "region", "status")
        ]


def test_a_restored_result_is_in_its_place_with_its_tags(restored):
    before, after, _other = restored
    found = results.nodes_of(after)
    np.testing.assert_allclose(brightest_place(after), brightest_place(before.map), atol=1e-3)
    np.testing.assert_allclose(findings.place_of(found.findings, 0), brightest_place(before.map), atol=1e-3)
    for index in range(2):
        old, new = segment_places(before.segmentation, index), segment_places(found.segmentation, index)
        np.testing.assert_allclose(new.mean(axis=0), old.mean(axis=0), atol=1e-3)
        assert len(old) == len(new)
    peak, entry = vtk.reference(""), vtk.reference("")
    segment = found.segmentation.GetSegmentation().GetNthSegment(0)
    assert segment.GetTag("UADBench.PeakZ", peak) and str(peak) == "9"
    assert segment.GetTag("TerminologyEntry", entry) and str(entry) == segments.TERMINOLOGY


def test_a_restored_result_looks_the_same(restored):
    before, after, other = restored
    old, new = before.map.GetDisplayNode(), after.GetDisplayNode()
    assert (new.GetWindowLevelMin(), new.GetWindowLevelMax()) == display.SCALE
    assert not new.GetAutoWindowLevel() and new.GetApplyThreshold()
    assert new.GetLowerThreshold() == old.GetLowerThreshold()
    assert new.GetColorNode().GetAttribute("UADBench.Role") == "colours"
    assert display.colours(other.mrml) is new.GetColorNode()
    for index in (0, 100, 255):
        values = [d.GetColorNode().GetLookupTable().GetTableValue(index) for d in (old, new)]
        np.testing.assert_allclose(*values, atol=0.01)


def test_colours_come_back_when_their_file_was_not_saved(restored):
    _before, after, other = restored
    node = after.GetDisplayNode().GetColorNode()
    node.SetNumberOfColors(0)
    assert display.colours(other.mrml) is node and node.GetNumberOfColors() == 256


def test_a_restored_segmentation_does_not_count_as_edited(restored):
    _before, after, _other = restored
    assert not segments.is_edited(results.nodes_of(after).segmentation)
    assert not findings.is_edited(results.nodes_of(after).findings)


def test_world_geometry_survives_a_transform_read_from_a_matrix(scene):
    """The fixture's matrices are what MRML makes of them; otherwise the tests above would prove nothing."""
    node = scene.transform(MOVE)
    world = vtk.vtkMatrix4x4()
    node.GetMatrixTransformToWorld(world)
    expected = matrix(MOVE)
    assert all(world.GetElement(r, c) == expected.GetElement(r, c) for r in range(4) for c in range(4))
