"""The command ``uadbench``: puts the commands together and turns failures into one line and an exit code.

0 done, 1 some scans of a cohort failed, 2 bad input or usage, 130 cancelled. A traceback is shown with
``--debug`` only.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from UADBenchLib import __version__
from UADBenchLib.cli import (
    benchmark,
    bias,
    calibrate,
    check,
    demo,
    detect,
    import_dataset,
    models,
    preprocess,
    report,
    scaling,
    synthesise,
    train,
)
from UADBenchLib.cli.console import note, one_line, say, terminable
from UADBenchLib.errors import CancelledError, UADBenchError

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="uadbench",
    help="Unsupervised anomaly detection in brain MRI. Research software; not a medical device.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", short_help="Detect known lesions in a sample scan.")(demo.demo)
app.command("detect", short_help="Detect anomalies in one scan.")(detect.detect)
app.add_typer(models.app, name="models", short_help="List the installed models, or show one.")
app.command("check", short_help="Check whether a scan can be used.")(check.check)
app.command("preprocess", short_help="Prepare a scan as the models see it.")(preprocess.preprocess)
app.command("synthesise", short_help="Make a labelled cohort of synthetic heads.")(synthesise.synthesise)
app.command("train", short_help="Train a method on healthy scans.")(train.train)
app.command("calibrate", short_help="Set a bundle's healthy reference and thresholds.")(calibrate.calibrate)
app.command("import", short_help="Bring a public data set into BIDS.")(import_dataset.import_dataset)
app.command("benchmark", short_help="Evaluate models on a cohort.")(benchmark.benchmark)
app.command("bias", short_help="Test what a benchmark run's results depend on.")(bias.bias)
app.command("scaling", short_help="Train on growing shares of the subjects, and evaluate.")(scaling.scaling)
app.command("report", short_help="Write a benchmark run's report.")(report.report)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"uadbench {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, and show tracebacks.")] = False,
) -> None:
    # main takes --debug out of the arguments, so that it may stand anywhere; this is its line in the help.
    if context.invoked_subcommand is None:
        say(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``uadbench`` and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    _start_logging(debug)
    try:
        with terminable():
            return _run([word for word in given if word != "--debug"])
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 2
    except (KeyboardInterrupt, typer.Abort, CancelledError):
        note("cancelled")
        return 130
    except Exception as error:
        if debug:
            logger.error("the traceback of the error below", exc_info=error)
        note(_line_of(error))
        return 2


def _run(arguments: list[str]) -> int:
    """Run the command and return its exit code; errors pass through."""
    result = app(arguments, prog_name="uadbench", standalone_mode=False)
    if result == 130:  # Typer's own answer to Ctrl-C
        note("cancelled")
    return result if isinstance(result, int) else 0


def _start_logging(debug: bool) -> None:
    """Send log records to stderr; warnings of libraries appear with ``--debug`` only."""
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.captureWarnings(True)
    for name in ("py.warnings", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING if debug else logging.ERROR)


def _line_of(error: Exception) -> str:
    """Return the one line that an exception is told in."""
    if isinstance(error, UADBenchError):
        return one_line(error.code, error.message, error.advice)
    if hasattr(error, "format_message"):  # what Typer raises for arguments that it cannot take
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "uadbench"
        return one_line("USAGE", error.format_message().rstrip("."), f"see `{command} --help`")
    from UADBenchLib.inference.worker import explain_failure

    failure = explain_failure(error)
    if failure["code"] == "INTERNAL":
        return one_line(
            "INTERNAL",
            f"{type(error).__name__}: {error}",
            "run again with --debug for the traceback and report it",
        )
    return one_line(**failure)


if __name__ == "__main__":
    sys.exit(main())
