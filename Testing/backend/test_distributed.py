"""Training under ``torchrun``: two processes take the same steps as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import Laboratory
from safetensors.torch import load_file

from UADBenchLib.training.distributed import Group, own_device, process_group

SCRIPT = Path(__file__).with_name("two_processes.py")
ALONE = [sys.executable]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def train(launcher: list[str], laboratory: Laboratory, out: Path) -> list[dict[str, object]]:
    """Run the script; the summary of each process."""
    command = [*launcher, str(SCRIPT), str(laboratory.cohort), str(laboratory.store), str(out)]
    root = str(SCRIPT.parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": root}, cwd=out.parent
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted(out.parent.glob(f"{out.name}.*.json"))]


def test_two_processes_take_the_steps_of_one(laboratory: Laboratory, tmp_path: Path) -> None:
    (alone,) = train(ALONE, laboratory, tmp_path / "alone")
    together = train(TOGETHER, laboratory, tmp_path / "together")
    assert len(together) == 2
    for summary in together:
        assert summary["loss"] == pytest.approx(alone["loss"], rel=1e-2)
    one, two = (load_file(tmp_path / name / "models" / "model.safetensors") for name in ("alone", "together"))
    start = torch.nn.Conv2d(1, 1, 5).weight.detach().std()
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), atol=0.01 * float(start)), name
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        *("alone", "alone.training"),
        *("together", "together.training"),
    }


def test_a_batch_is_shared_without_rest() -> None:
    batch = list(range(7))
    shares = [Group(rank, 3).share(batch) for rank in range(3)]
    assert sorted(sum(shares, [])) == batch
    assert Group(2, 3).share([5]) == [5], "a process without a slice would have no gradient"


def test_alone_nothing_is_set_up() -> None:
    with process_group() as group:
        assert group == Group() and group.first
        assert not torch.distributed.is_initialized()
    layer = torch.nn.Linear(2, 2)
    assert group.wrap(layer) is layer


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device("auto") == own_device("cuda") == "cuda:3"
    assert own_device("cpu") == "cpu" and own_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto") == "auto"
