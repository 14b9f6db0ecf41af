"""Messages between the worker process and those who drive it: one JSON object a line, standard library only.

Arrays do not travel in messages. They lie as ``.npy`` files (written and read with ``allow_pickle=False``) in a
private folder that belongs to the job; messages name them by file name within that folder. Arrays are in (i, j, k)
order and every affine maps voxel indices to RAS millimetres.

Requests
--------
``detect``     job, folder, scan {voxels, affine, contrast, stem}, models, operating_point, device, minimum_ml,
               brain_mask (file or null), reference (file or null), force (true goes on with a scan that looks like
               neither T1w, T2w nor FLAIR)
``threshold``  job, model, threshold, minimum_ml: new mask and findings from the map that a finished job left
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
beside a map, with the contrast found, quality and domain), and ``brain_mask`` (uint8 ``.npy``, shared by all).
"""

from __future__ import annotations

import json
from typing import Any, TextIO

VERSION = 1
REQUESTS = ("detect", "threshold", "models", "device", "cancel", "quit")
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
