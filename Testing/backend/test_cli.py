"""The command line: what it prints where, its exit codes, and that a refusal is one line and writes nothing.

The detector is replaced where trained models would be needed; reading, checking, findings and reports are the
real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from UADBenchLib.cli.console import number, one_line, progress_bar, table
from UADBenchLib.cli.main import app, main
from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.scan import Check, Scan
from UADBenchLib.writing import write_volume

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("demo", "detect", "models", "check", "preprocess", "synthesise", "train", "calibrate")


def head() -> tuple[np.ndarray, np.ndarray]:
    """A head of 2.5 mm voxels with a bright spot, and the mask of the spot."""
    shape = (64, 76, 60)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    voxels = np.random.default_rng(1).normal(20, 4, shape)
    voxels += 400 * ((place**2).sum(axis=0) < 0.8)
    spot = np.zeros(shape, bool)
    spot[40:44, 40:44, 30:34] = True
    voxels[spot] = 900
    return np.abs(voxels).astype(np.float32), spot


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A scan and its reference on disk, in a folder of their own."""
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = (-80, -95, -75)
    voxels, spot = head()
    folder = tmp_path / "input"
    paths = {"scan": folder / "sub-1_T1w.nii.gz", "reference": folder / "sub-1_mask.nii.gz"}
    write_volume(paths["scan"], voxels, affine)
    write_volume(paths["reference"], spot, affine)
    paths["broken"] = folder / "sub-2_T1w.nii.gz"
    paths["broken"].write_bytes(paths["scan"].read_bytes()[:4000])
    return paths


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of two T1w models, of which only the metadata exists."""
    folder = tmp_path / "models"
    for name in ("disyre-t1w-compact", "fae-t1w-compact"):
        (folder / name / "configs").mkdir(parents=True)
        (folder / name / "docs").mkdir()
        entry = {
            "id": name, "method": name.split("-")[0], "contrast": "T1w", "preset": "compact", "steps": 10,
            "operating_points": {"fpr-1pct": {"threshold": 3.25}},
        }  # fmt: skip
        (folder / name / "configs" / "metadata.json").write_text(json.dumps(entry))
        (folder / name / "docs" / "README.md").write_text(f"# Card of {name}\n")
    monkeypatch.setattr("UADBenchLib.bundles.catalogue.bundle_folders", lambda: [folder])


@pytest.fixture
def calls(models: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace detection; the calls that were made are recorded."""
    from UADBenchLib.inference import detector

    made: list[dict[str, Any]] = []

    def detect(scan: Scan, names: list[str], **options: Any) -> list[detector.Detection]:
        names = list(dict.fromkeys(names))
        made.append({"scan": scan, "models": list(names), **options})
        brain = scan.voxels > 200
        scores = np.where(scan.voxels > 700, 6.0, 0.0).astype(np.float32)
        empty = np.zeros(scan.shape, np.uint8)
        checks = [*scan.checks]
        if scan.contrast is None:
            checks.append(Check("warning", "CONTRAST_DISAGREES", "looks like FLAIR", "look at it"))
        return [
            detector._thresholded(
                detector.Detection(
                    model=name,
                    map=scores,
                    raw=scores,
                    mask=empty,
                    brain_mask=brain.astype(np.uint8),
                    affine=scan.affine,
                    threshold=3.25,
                    operating_point=options["operating_point"],
                    origin="test",
                    findings=[],
                    metrics=None,
                    seconds={"scoring": 1.5},
                    checks=checks,
                    provenance={"device": options["device"]},
                    minimum_ml=options["minimum_ml"],
                    reference=options["reference"],
                )
            )
            for name in names or ["disyre-t1w-compact"]
        ]

    monkeypatch.setattr(detector, "detect", detect)
    return made


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def only_line(text: str) -> str:
    """The one line of a text."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "UADBenchLib.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, **options)


# --------------------------------------------------------------------------------------------------
# Help, usage and errors


@pytest.mark.parametrize("command", [(), *[(name,) for name in COMMANDS], ("models", "show")])
def test_help_of_every_command(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage: " in result.output
    if not command:
        assert all(f"\n  {name} " in result.output for name in COMMANDS)
        assert "..." not in result.output.split("Commands:")[1]


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    """Counts modules instead of seconds: a slow machine must not fail it, a heavy import must."""
    code = (
        "import sys\nfrom UADBenchLib.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'nibabel', 'SimpleITK', 'matplotlib', 'scipy', 'pandas', 'nilearn'}\n"
        "heavy |= {'numpy', 'rich', 'jinja2', 'pydantic'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "detect" in done.stdout
    assert done.stderr == ""


def test_version(run: Run) -> None:
    from UADBenchLib import __version__

    assert run("--version") == (0, f"uadbench {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("detect",),
        ("detect", "scan.nii"),
        ("detect", "scan.nii", "--out", "o", "--contrast", "PD"),
        ("detect", "scan.nii", "--out", "o", "--minimum-ml", "-1"),
        ("detect", "scan.nii", "--out", "o", "--colour"),
        ("train", "fae", "--cohort", "c.csv", "--contrast", "T1w", "--out", "o", "--preset", "huge"),
        ("models", "show"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert only_line(err).startswith("error USAGE: ") and "--help`" in err


def test_process_ends_with_the_code_and_without_traceback(files: dict[str, Path], tmp_path: Path) -> None:
    done = process("detect", str(files["broken"]), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == ""
    assert only_line(done.stderr).startswith("error ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            InputError("TRUNCATED", "it ends\nearly", "copy it again"),
            2,
            "error TRUNCATED: it ends early; copy it again",
        ),
        (CancelledError(), 130, "cancelled"),
        (KeyboardInterrupt(), 130, "cancelled"),
        (KeyError("slices"), 2, "error INTERNAL: KeyError: 'slices'; run again with --debug"),
        (MemoryError(), 2, "error OUT_OF_MEMORY: "),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "error OUT_OF_MEMORY: "),
        (OSError(28, "No space left on device"), 2, "error FILE_ERROR: "),
    ],
)
def test_every_failure_is_one_line(
    run: Run,
    calls: list[dict[str, Any]],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    from UADBenchLib.inference import detector

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(detector, "detect", fail)
    got, out, err = run("detect", files["scan"], "--out", tmp_path / "out")
    assert (got, out) == (code, "")
    assert only_line(err).startswith(line)
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(
    run: Run,
    calls: list[dict[str, Any]],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from UADBenchLib.inference import detector

    monkeypatch.setattr(detector, "detect", lambda *a, **k: 1 / 0)
    code, _, err = run("detect", files["scan"], "--out", tmp_path / "out", "--debug")
    assert code == 2 and "Traceback" in err and "error INTERNAL: ZeroDivisionError" in err


# --------------------------------------------------------------------------------------------------
# detect and demo


def test_detect_writes_the_files_and_prints_a_table(
    run: Run, calls: list[dict[str, Any]], files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, err = run("detect", files["scan"], "--out", out, "--reference", files["reference"])
    assert code == 0, err
    assert calls[0]["models"] == [] and calls[0]["scan"].contrast == "T1w" and not calls[0]["force"]
    assert calls[0]["operating_point"] == "fpr-1pct" and calls[0]["minimum_ml"] == 0.1 and calls[0]["device"] == "auto"
    heading, row = text.splitlines()[:2]
    assert heading.split()[:4] == ["model", "Dice", "AP", "findings"]
    assert row.split()[:4] == ["disyre-t1w-compact", "1.000", "1.000", "1"]
    names = {path.name for path in out.iterdir()}
    assert {
        "sub-1_T1w_report.html",
        "sub-1_T1w_model-disyre-t1w-compact.png",
        "sub-1_T1w_brain_mask.nii.gz",
    } <= names
    assert all(name in text for name in names)


def test_detect_json_is_one_document_on_stdout(
    run: Run, calls: list[dict[str, Any]], files: dict[str, Path], tmp_path: Path
) -> None:
    nameless = files["scan"].rename(files["scan"].with_name("head.nii.gz"))
    code, text, err = run(
        "detect",
        nameless,
        "--out",
        tmp_path / "out",
        "--model",
        "fae-t1w-compact",
        "--model",
        "disyre-t1w-compact",
        "--model",
        "fae-t1w-compact",
        "--json",
        "--minimum-ml",
        0.5,
        "--operating-point",
        "best",
    )
    assert code == 0
    document = json.loads(text)
    assert [entry["model"] for entry in document["detections"]] == ["fae-t1w-compact", "disyre-t1w-compact"]
    assert all(Path(path).is_file() for path in document["files"])
    assert calls[0]["minimum_ml"] == 0.5 and calls[0]["operating_point"] == "best"
    assert calls[0]["scan"].contrast is None
    assert sum("CONTRAST_DISAGREES" in line for line in err.splitlines()) == 1


def test_detect_takes_the_contrast_from_the_option(
    run: Run, calls: list[dict[str, Any]], files: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--model", "fae-t1w-compact", "--contrast", "FLAIR", "--brain-mask", files["reference"])
    assert run("detect", files["scan"], "--out", tmp_path / "out", *options)[0] == 0
    assert calls[0]["scan"].contrast == "FLAIR"
    assert calls[0]["brain_mask"].sum() == 64 and calls[0]["reference"] is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"scan": "absent.nii.gz"}, "NOT_FOUND"),
        ({"scan": "broken"}, None),
        ({"--reference": "absent.nii.gz"}, "NOT_FOUND"),
        ({"--model": "nothing"}, "MODEL_UNKNOWN"),
        ({"--out": "file"}, "NOT_WRITABLE"),
    ],
)
def test_bad_input_writes_nothing(
    run: Run,
    calls: list[dict[str, Any]],
    files: dict[str, Path],
    tmp_path: Path,
    change: dict[str, str],
    code: str,
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments: dict[str, object] = {"scan": files["scan"], "--out": tmp_path / "out"}
    for key, value in change.items():
        arguments[key] = files.get(value, tmp_path / value if "." in value or value == "file" else value)
    scan = arguments.pop("scan")
    got, text, err = run("detect", scan, *(part for pair in arguments.items() for part in pair))
    assert (got, text) == (2, "") and calls == []
    assert only_line(err).startswith(f"error {code}: " if code else "error ")
    assert not (tmp_path / "out").exists()


def test_demo_compares_the_preferred_models(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    voxels, spot = head()
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    sample = types.ModuleType("UADBenchLib.synthesis.sample")
    scan = Scan(voxels, affine, stem="sample_T1w", contrast="T1w")
    sample.make_sample = lambda contrast: (scan, spot, voxels > 200)
    monkeypatch.setitem(sys.modules, "UADBenchLib.synthesis.sample", sample)
    monkeypatch.chdir(tmp_path)
    original = _detect_without_options(monkeypatch)
    code, text, err = run("demo")
    assert code == 0, err
    assert original == [["disyre-t1w-compact", "fae-t1w-compact"]]
    assert "Dice" in text and "disyre-t1w-compact is the default model" in text
    assert "report   uadbench-demo/sample_T1w_report.html".replace("/", os.sep) in text
    assert (tmp_path / "uadbench-demo" / "sample_T1w_report.html").is_file()
    assert text.count(".png") == 2


def _detect_without_options(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let the replaced detector also be called without options it has defaults for; records the models."""
    from UADBenchLib.inference import detector

    inner, seen = detector.detect, []

    def detect(scan: Scan, names: list[str], **options: Any) -> list[Any]:
        seen.append(list(names))
        return inner(scan, names, **({"operating_point": "fpr-1pct", "minimum_ml": 0.1} | options))

    monkeypatch.setattr(detector, "detect", detect)
    return seen


# --------------------------------------------------------------------------------------------------
# models, check, preprocess, train, calibrate


def test_models_lists_and_shows(run: Run, models: None) -> None:
    code, text, _ = run("models")
    assert code == 0 and "disyre-t1w-compact" in text and "3.25" in text and "calibrated" in text
    code, text, _ = run("models", "--json")
    assert {"disyre-t1w-compact", "fae-t1w-compact"} <= {entry["id"] for entry in json.loads(text)["models"]}
    assert run("models", "show", "fae-t1w-compact") == (0, "# Card of fae-t1w-compact\n", "")
    code, text, _ = run("models", "show", "fae-t1w-compact", "--json")
    assert json.loads(text)["method"] == "fae"
    code, text, err = run("models", "show", "nothing")
    assert (code, text) == (2, "") and only_line(err).startswith("error MODEL_UNKNOWN")


def test_check_says_what_it_noticed(run: Run, files: dict[str, Path]) -> None:
    code, text, err = run("check", files["scan"])
    assert code == 0 and err == "" and text.endswith("sub-1_T1w can be used\n")
    code, text, err = run("check", files["scan"], "--json")
    document = json.loads(text)
    assert code == 0 and document["usable"] and document["contrast"] == "T1w"


def test_check_ends_with_2_when_the_scan_cannot_be_used(run: Run, files: dict[str, Path]) -> None:
    code, text, err = run("check", files["broken"])
    assert code == 2 and text == "" and only_line(err).startswith("error ")
    code, text, _ = run("check", files["broken"], "--json")
    document = json.loads(text)
    assert code == 2 and not document["usable"] and document["checks"][0]["level"] == "error"


def test_preprocess_writes_scan_mask_and_record(
    run: Run, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nibabel

    from UADBenchLib.preprocessing import recipe

    def prepare(
        scan: Scan, made: recipe.Recipe | None = None, *, brain_mask: Any = None, progress: Any = None
    ) -> recipe.Prepared:
        made = made or recipe.Recipe()
        mask = scan.voxels > 200 if brain_mask is None else brain_mask
        inside = np.ones(made.shape, bool)
        steps = [
            {"step": "brain mask", "source": "test", "volume_ml": 12.0},
            {"step": "registration", "world": np.eye(4).tolist()},
        ]
        return recipe.Prepared(
            inside.astype(np.float32),
            inside,
            made.affine,
            mask,
            np.eye(4),
            steps,
            list(scan.checks),
            {"brain mask": 0.5},
            found[0],
            {"snr": 10.0},
        )

    from UADBenchLib.preprocessing.contrast import ContrastFound

    found = [ContrastFound("FLAIR", "because", 0.3, 0.7, 0.6, 0.0)]
    monkeypatch.setattr(recipe, "prepare", prepare)
    out = tmp_path / "out"
    code, text, err = run("preprocess", files["scan"], "--out", out, "--explain")
    assert code == 0, err
    assert only_line(err).startswith("warning CONTRAST_DISAGREES")
    assert "1. brain mask (0.5 s): source test, volume_ml 12" in text and "4 x 4 matrix" in text
    names = ["sub-1_T1w_brain_mask.nii.gz", "sub-1_T1w_recipe.json", "sub-1_T1w_space-model_scan.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == names
    record = json.loads((out / names[1]).read_text())
    assert record["recipe_hash"] == recipe.Recipe().hash and record["steps"][0]["volume_ml"] == 12.0
    assert nibabel.load(out / names[0]).shape == (64, 76, 60)
    assert nibabel.load(out / names[2]).shape == recipe.Recipe().shape
    code, text, _ = run("preprocess", files["scan"], "--out", out, "--json", "--brain-mask", files["reference"])
    assert code == 0 and json.loads(text)["files"]
    assert np.asarray(nibabel.load(out / names[0]).dataobj).sum() == 64
    code, text, _ = run("preprocess", files["scan"], "--out", out, "--json", "--reference", files["reference"])
    (path,) = (path for path in json.loads(text)["files"] if path.endswith("sub-1_T1w_space-model_reference.nii.gz"))
    carried, lesion = nibabel.load(path), nibabel.load(files["reference"])
    assert code == 0 and carried.shape == tuple(2 * size for size in recipe.Recipe().shape)
    places = [
        np.argwhere(np.asarray(image.dataobj)) @ image.affine[:3, :3].T + image.affine[:3, 3]
        for image in (carried, lesion)
    ]
    np.testing.assert_allclose(places[0].mean(axis=0), places[1].mean(axis=0), atol=0.3)
    code, text, err = run("check", files["scan"], "--full", "--json")
    document = json.loads(text)
    assert code == 0 and document["usable"] and document["quality"] == {"snr": 10.0}
    assert document["contrast_found"]["contrast"] == "FLAIR" and document["checks"][0]["code"] == "CONTRAST_DISAGREES"
    found[0] = ContrastFound("other", "because", None, 0.7, 0.6, 0.0)
    plain = files["scan"].with_name("plain.nii.gz")
    plain.write_bytes(files["scan"].read_bytes())
    for command in (("check", plain, "--full"), ("preprocess", plain, "--out", tmp_path / "none")):
        code, text, err = run(*command)
        assert code == 2 and only_line(err).startswith("error CONTRAST_OTHER") and not (tmp_path / "none").exists()
    assert run("preprocess", plain, "--out", tmp_path / "forced", "--force")[0] == 0


def test_train_passes_everything_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from UADBenchLib.training import trainer

    seen: dict[str, Any] = {}

    def train(method: str, cohort: Path, **options: Any) -> dict[str, Any]:
        seen.update(options, method=method, cohort=cohort)
        return {
            "id": "fae-t1w-compact",
            "steps": 5,
            "left_out": ["a.nii.gz: TRUNCATED"],
            "loss": float("nan"),
        }

    monkeypatch.setattr(trainer, "train", train)
    arguments = (
        "train",
        "fae",
        "--cohort",
        "c.csv",
        "--contrast",
        "T2w",
        "--out",
        tmp_path / "b",
        "--preset",
        "paper",
    )
    code, text, err = run(
        *arguments, "--fraction", 0.5, "--seed", 3, "--steps", 5, "--resume", "--set", "a=1", "--set", "b=x,y"
    )
    assert code == 0 and "id: fae-t1w-compact" in text and only_line(err) == "warning LEFT_OUT: a.nii.gz: TRUNCATED"
    expected = {
        "method": "fae", "cohort": Path("c.csv"), "contrast": "T2w", "preset": "paper", "out": tmp_path / "b",
        "fraction": 0.5, "seed": 3, "steps": 5, "resume": True, "device": "auto", "changes": ["a=1", "b=x,y"],
    }  # fmt: skip
    assert {key: seen[key] for key in expected} == expected
    assert not isinstance(seen["contrast"], type(None)) and type(seen["contrast"]) is str
    code, text, _ = run(*arguments, "--json")
    assert json.loads(text)["loss"] is None


def test_calibrate_passes_everything_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from UADBenchLib.inference import calibration

    seen: list[Any] = []

    def calibrate(bundle: Path, healthy: Path, lesions: Path | None = None, **options: Any) -> dict[str, Any]:
        seen.append((bundle, healthy, lesions, options["device"]))
        return {"operating_points": {"fpr-1pct": 3.5}}

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    code, text, _ = run("calibrate", "bundle", "--healthy", "h.csv", "--lesions", "l.csv", "--device", "cpu")
    assert code == 0 and text == "operating_points:\n  fpr-1pct: 3.5\n"
    assert seen == [(Path("bundle"), Path("h.csv"), Path("l.csv"), "cpu")]
    assert run("calibrate", "bundle", "--healthy", "h.csv", "--json")[1].strip().startswith("{")


# --------------------------------------------------------------------------------------------------
# Cancelling


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself these signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_next_progress_call_cancels(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(CancelledError), progress_bar() as progress:
        progress("registration", 0.1)
        os.kill(os.getpid(), number)
        progress("registration", 0.2)
        raise AssertionError("the work went on")
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself these signals")
def test_a_second_interrupt_does_not_wait_for_progress() -> None:
    with pytest.raises(KeyboardInterrupt), progress_bar():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the work went on")


def test_progress_draws_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress("scoring", 0.5)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_progress_draws_on_a_terminal_and_leaves_stdout_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as progress:
        progress("scoring", 0.5)
        progress("scoring", 1.0)
    captured = capsys.readouterr()
    assert captured.out == "" and "scoring" in captured.err


# --------------------------------------------------------------------------------------------------
# Pieces


def test_table_and_numbers() -> None:
    assert table(["a", "bb"], [["long", "1"]]) == "a     bb\nlong   1"
    assert number(None) == number(float("nan")) == "-"
    assert number(1.23456, 2) == "1.23"
    assert one_line("A", "b\n c", "d") == "error A: b c; d"
