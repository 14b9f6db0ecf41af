"""What there is to compute on, and which of it to use."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from UADBenchLib.errors import InputError


def devices() -> list[dict[str, Any]]:
    """Every usable device: ``id`` (as ``--device`` takes it), ``name`` and ``memory_free_gb`` (None where unknown)."""
    import torch

    found = [{"id": "cpu", "name": f"CPU, {os.cpu_count()} cores", "memory_free_gb": None}]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, _ = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            found.append({"id": f"cuda:{number}", "name": name, "memory_free_gb": round(free / 1024**3, 1)})
    if torch.backends.mps.is_available():
        found.append({"id": "mps", "name": "Apple GPU", "memory_free_gb": None})
    return found


def choose_device(name: str = "auto"):
    """Return the ``torch.device`` for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto`` takes a GPU when
    there is one.

    Raises
    ------
    InputError
        ``DEVICE_UNKNOWN`` when this machine has no such device.
    """
    import torch

    known = [entry["id"] for entry in devices()]
    if name == "auto":
        return torch.device(known[1] if len(known) > 1 else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in known:
        raise InputError(
            "DEVICE_UNKNOWN", f"there is no device {name!r} here", f"choose auto or one of {', '.join(known)}"
        )
    return torch.device(wanted)


def autocast(device):
    """Mixed precision for training where it pays: bfloat16 on GPUs, and on processors that compute in it."""
    import torch

    if device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16()):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def _cpu_has_bfloat16() -> bool:
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
