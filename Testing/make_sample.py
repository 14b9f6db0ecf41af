"""The sample data of the Slicer module: a scan of nobody with a synthetic lesion, its reference, thumbnails, checksums.

    python Testing/make_sample.py --out UADBench/Resources/SampleData

The scan is that of ``uadbench demo`` (``UADBenchLib.synthesis.sample``, seed 0): a brain made from the ICBM 2009a
template that nilearn carries, on an oblique, anisotropic, left-handed grid. Intensities are rounded to whole numbers so
that the file stays small. The same command makes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

from UADBenchLib import writing
from UADBenchLib.synthesis.sample import make_sample

SCAN = "UADBenchSample_T1w"
REFERENCE = "UADBenchSample_reference"
FILES = {SCAN: f"{SCAN}.nii.gz", REFERENCE: "UADBenchSample_label-lesion_mask.nii.gz"}
LEVELS = 1000
THUMBNAIL = (280, 260)
"""Width and height in pixels, as Slicer's Sample Data module shows them."""


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume without the time that gzip puts into its header, so that the same voxels make the same bytes."""
    import nibabel

    kind = np.uint8 if array.dtype == bool else np.int16
    image = nibabel.Nifti1Image(array.astype(kind), affine)
    image.header.set_xyzt_units("mm")
    with writing.atomic(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), compresslevel=9, mtime=0))


def thumbnail(path: Path, voxels: np.ndarray, outline: np.ndarray | None) -> None:
    """Write the axial slice with most of the lesion as a picture."""
    from PIL import Image

    k = int(np.argmax(outline.sum(axis=(0, 1)))) if outline is not None else voxels.shape[2] // 2
    plane = np.clip(voxels[:, :, k] / np.percentile(voxels[voxels > 0], 99.5), 0, 1)
    rgb = np.repeat(plane[..., None], 3, axis=-1)
    brain = np.argwhere(voxels[:, :, k] > 0)
    (left, back), (right, front) = brain.min(axis=0), brain.max(axis=0) + 1
    if path.stem == REFERENCE:
        rgb[outline[:, :, k]] = 0.5 * rgb[outline[:, :, k]] + 0.5 * np.array([0.0, 0.75, 0.5])
    # The grid is left-handed with i to the left: rows of the picture run from front to back.
    rgb = rgb[left:right, back:front].transpose(1, 0, 2)[::-1]
    picture = Image.fromarray(np.round(255 * rgb).astype(np.uint8))
    zoom = min((edge - 10) / size for edge, size in zip(THUMBNAIL, picture.size, strict=True))
    picture = picture.resize([round(zoom * size) for size in picture.size], Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", THUMBNAIL)
    canvas.paste(picture, tuple((a - b) // 2 for a, b in zip(THUMBNAIL, picture.size, strict=True)))
    with writing.atomic(path) as partial:
        canvas.save(partial, optimize=True)


def main(words: list[str]) -> int:
    """Write the sample data."""
    parser = argparse.ArgumentParser(description="Make the sample data of the Slicer module.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(words).out
    scan, reference, _brain = make_sample()
    voxels = np.round(scan.voxels * (LEVELS / float(scan.voxels.max())))
    write(out / FILES[SCAN], voxels, scan.affine)
    write(out / FILES[REFERENCE], reference, scan.affine)
    for name in FILES:
        thumbnail(out / f"{name}.png", voxels, reference)
    lines = [f"{hashlib.sha256((out / file).read_bytes()).hexdigest()}  {file}" for file in FILES.values()]
    writing.write_text(out / "SHA256SUMS", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
