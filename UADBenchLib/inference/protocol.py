"""Messages between the worker process and those who drive it: one JSON object a line, standard library only.

Arrays do not travel in messages. They lie as ``.npy`` files (written and read with ``allow_pickle=False``) in a
private folder that belongs to the job; messages name them by file name within that folder. Arrays are in (i, j, k)
order and every affine maps voxel indices to RAS millimetres.

Requests
--------
``detect``     job, folder, scan {voxels, affine, contrast, stem}, models, operating_point, device, minimum_ml,
               brain_mask (file or null), reference (file or null), force (true goes on with a scan that looks like
               neither T1w, T2w nor FLAIR), batch (slices at a time), reconstruct (true also gives the pseudo-healthy
               scan)
``check``      job, folder, scan, brain_mask: what is noticed about a scan, its contrast and quality; no model
``threshold``  job, model, threshold, minimum_ml, smoothing_mm, operating_point, origin: new mask and findings from the
               map that a finished job left
``remember``   job, folder, affine, detections [{model, map, threshold, summary}], brain_mask: maps of an earlier
               session, as if their job had just finished
``compare``    job, reference (file or null), percentile, models: metrics and threshold curves of a finished job's maps
               against a reference
``export``     job, folder, out, formats, ...: files of a finished job; only where the process offers it (see
               ``reports.worker``)
``models``     the catalogue
``device``     what there is to compute on
``cancel``     job
``quit``

Events
------
``ready`` protocol, version · ``accepted`` job · ``progress`` job, stage, fraction, eta_s · ``warning`` job, code,
message, advice · ``result`` job, ... · ``failed`` job, code, message, advice · ``cancelled`` job · ``bye``

Every ``result`` names the request it answers in ``kind``. That of a detect request carries ``detections``: one object
a model with ``model``, ``map`` (float32 ``.npy``, calibrated z), ``mask`` (uint8 ``.npy``), ``threshold``,
``operating_point``, ``findings`` (rows of the findings table), ``summary`` (the JSON that the command line writes
beside a map, with the contrast found, quality and domain), ``brain_mask`` (uint8 ``.npy``, shared by all), and
``reconstruction`` and ``residual`` (float32 ``.npy``) where they were asked for. That of ``compare`` adds ``metrics``
and ``curve`` {threshold, dice}. A ``failed`` may carry ``offers``: changes of the request with which it could succeed,
as objects of request fields, the best first.
"""

from __future__ import annotations

import json
from typing import Any, TextIO

VERSION = 2
REQUESTS = (
    "detect", "check", "threshold", "remember", "compare", "export", "models", "device", "cancel", "quit",
)  # fmt: skip
EVENTS = ("ready", "accepted", "progress", "warning", "result", "failed", "cancelled", "bye")


class ProtocolError(ValueError):
    """A line that is not a message of this protocol."""


def encode(message: dict[str, Any]) -> str:
    """Return ``message`` as one line of JSON, newline included. Non-finite numbers are refused."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False) + "\n"


def decode(line: str, kind: str) -> dict[str, Any]:
    """Parse one line; ``kind`` is ``"request"`` or ``"event"``.

    Raises
    ------
    ProtocolError
        If the line is not a JSON object or does not name a known request or event.
    """
    try:
        message = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"not JSON: {error.msg}") from error
    known = REQUESTS if kind == "request" else EVENTS
    if not isinstance(message, dict) or message.get(kind) not in known:
        raise ProtocolError(f"not one of the known {kind}s: {', '.join(known)}")
    return message


def send(stream: TextIO, kind: str, name: str, **fields: Any) -> None:
    """Write one message and flush it."""
    stream.write(encode({kind: name, **fields}))
    stream.flush()
