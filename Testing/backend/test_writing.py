"""Files out: complete or not at all, exact values and geometry, and no text in headers."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from UADBenchLib import writing
from UADBenchLib.errors import InputError


class TestAtomic:
    def test_gives_the_name_only_at_the_end(self, tmp_path):
        target = tmp_path / "new" / "map.nii.gz"
        with writing.atomic(target) as partial:
            assert partial.parent == target.parent and partial.name.endswith(".nii.gz")
            partial.write_bytes(b"x")
            assert not target.exists()
        assert target.read_bytes() == b"x"
        assert os.listdir(target.parent) == ["map.nii.gz"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
    def test_interrupted_leaves_nothing(self, tmp_path, error):
        with pytest.raises(error), writing.atomic(tmp_path / "a.json") as partial:
            partial.write_bytes(b"half")
            raise error
        assert os.listdir(tmp_path) == []

    def test_interrupted_leaves_the_old_file_as_it_was(self, tmp_path):
        target = tmp_path / "a.json"
        writing.write_text(target, "old")
        with pytest.raises(RuntimeError), writing.atomic(target) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError
        assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]

    def test_is_on_the_disk_before_it_takes_the_name(self, tmp_path, monkeypatch):
        done, replace, synchronise = [], os.replace, os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), synchronise(handle)))
        monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
        writing.write_text(tmp_path / "a.txt", "x")
        assert done[:2] == ["fsync", "replace"]

    def test_who_reads_the_old_file_goes_on_reading_it(self, tmp_path):
        writing.write_text(tmp_path / "a.txt", "old")
        with open(tmp_path / "a.txt") as stream:
            if os.name == "posix":
                writing.write_text(tmp_path / "a.txt", "new")
            assert stream.read() == "old"

    def test_a_killed_process_leaves_no_file_under_the_name(self, tmp_path, repository):
        code = (
            "import os, sys\nfrom UADBenchLib import writing\n"
            "with writing.atomic(sys.argv[1]) as partial:\n"
            "    partial.write_bytes(b'half')\n    os._exit(9)\n"
        )
        target = tmp_path / "map.nii.gz"
        done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=repository, check=False)
        assert done.returncode == 9 and not target.exists()

    def test_honours_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            writing.write_text(tmp_path / "a.txt", "x")
        finally:
            os.umask(before)
        if os.name == "posix":
            assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640

    def test_a_folder_in_the_way_is_named(self, tmp_path):
        (tmp_path / "a.txt").mkdir()
        with pytest.raises(InputError) as caught:
            writing.write_text(tmp_path / "a.txt", "x")
        assert caught.value.code == "NOT_WRITABLE"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_a_file_for_a_folder_is_named(self, tmp_path):
        (tmp_path / "a").write_text("")
        with pytest.raises(InputError, match="NOT_WRITABLE"):
            writing.write_text(tmp_path / "a" / "b.txt", "x")

    def test_a_full_disk_is_named(self, tmp_path):
        with pytest.raises(InputError) as caught, writing.atomic(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "full")
        assert caught.value.code == "DISK_FULL" and os.listdir(tmp_path) == []

    def test_other_trouble_inside_the_block_keeps_its_kind(self, tmp_path):
        with pytest.raises(PermissionError), writing.atomic(tmp_path / "a.txt"):
            raise PermissionError(errno.EACCES, "about some other file")


class TestVolume:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_values_and_geometry(self, tmp_path, affine, volume, suffix):
        writing.write_volume(tmp_path / f"a{suffix}", volume, affine)
        image = nibabel.load(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.get_sform(), affine, atol=1e-4)
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
        assert image.header.get_xyzt_units()[0] == "mm"

    def test_sheared_axes_get_no_qform(self, tmp_path, affine, volume):
        affine[:3, 1] += 0.1 * affine[:3, 0]
        writing.write_volume(tmp_path / "a.nii", volume, affine)
        header = nibabel.load(tmp_path / "a.nii").header
        assert int(header["qform_code"]) == 0 and int(header["sform_code"]) == 1
        np.testing.assert_allclose(header.get_sform(), affine, atol=1e-4)

    def test_headers_hold_no_text(self, tmp_path, affine, volume):
        writing.write_volume(tmp_path / "a.nii", volume, affine)
        header = nibabel.load(tmp_path / "a.nii").header
        for field in ("descrip", "db_name", "aux_file", "intent_name", "data_type"):
            assert bytes(header[field]).strip(b"\0") == b"", field
        assert len(header.extensions) == 0

    def test_the_same_volume_gives_the_same_bytes(self, tmp_path, affine, volume):
        for name in ("a.nii.gz", "b.nii.gz"):
            writing.write_volume(tmp_path / name, volume, affine)
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()

    @pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
    def test_masks_and_labels_become_uint8(self, tmp_path, affine, dtype):
        labels = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
        writing.write_volume(tmp_path / "m.nii.gz", labels, affine)
        image = nibabel.load(tmp_path / "m.nii.gz")
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), labels)

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.zeros((2, 2)), "three dimensions"),
            (np.full((2, 2, 2), np.nan), "not finite"),
            (np.full((2, 2, 2), 256), "256"),
            (np.full((2, 2, 2), -1), "-1"),
            (np.zeros((2, 2, 2), dtype=complex), "complex128"),
        ],
    )
    def test_refuses_what_it_cannot_store(self, tmp_path, affine, array, said):
        with pytest.raises(ValueError, match=said):
            writing.write_volume(tmp_path / "a.nii", array, affine)
        assert os.listdir(tmp_path) == []

    def test_refuses_other_suffixes(self, tmp_path, affine, volume):
        with pytest.raises(ValueError, match=r"a\.img"):
            writing.write_volume(tmp_path / "a.img", volume, affine)


class TestTables:
    def test_text_is_utf8_with_line_feeds(self, tmp_path):
        writing.write_text(tmp_path / "a.txt", "µ\n2\n")
        assert (tmp_path / "a.txt").read_bytes() == "µ\n2\n".encode()

    def test_json_from_numpy(self, tmp_path):
        document = {"a": np.float32(0.5), "b": np.arange(2), "c": (1, None, True), "d": np.nan, 3: [np.inf]}
        writing.write_json(tmp_path / "a.json", document)
        text = (tmp_path / "a.json").read_text()
        assert json.loads(text) == {"a": 0.5, "b": [0, 1], "c": [1, None, True], "d": None, "3": [None]}

    def test_json_refuses_objects(self, tmp_path):
        with pytest.raises(TypeError):
            writing.write_json(tmp_path / "a.json", {"a": object()})
        assert os.listdir(tmp_path) == []

    def test_csv(self, tmp_path):
        rows = [{"index": 1, "region": 'left, "front"'}, {"index": 2, "region": None}, {"index": 3}]
        writing.write_csv(tmp_path / "a.csv", rows, ["index", "region"])
        assert (tmp_path / "a.csv").read_text() == 'index,region\n1,"left, ""front"""\n2,\n3,\n'

    def test_csv_of_nothing_has_its_header(self, tmp_path):
        writing.write_csv(tmp_path / "a.csv", [], ["index", "region"])
        assert (tmp_path / "a.csv").read_text() == "index,region\n"

    def test_csv_refuses_unknown_columns(self, tmp_path):
        with pytest.raises(ValueError, match="spare"):
            writing.write_csv(tmp_path / "a.csv", [{"spare": 1}], ["index"])
        assert os.listdir(tmp_path) == []
