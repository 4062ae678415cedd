"""The command ``bm-fast``: train, sample and evaluate Boltzmann machines from the shell.

Exit codes: 0 done; 2 refused before any work, for what the command line says or names; 1 failed; 130 interrupted by
Ctrl-C (what can be saved has been saved).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module

from bm_fast.cli.console import Console, Result, UsageError, emit, plain, version, whole

COMMANDS = {
    "train": "train a machine; writes a checkpoint, the learning curve and the configuration",
    "sample": "draw samples from a trained machine; writes an array and a picture",
    "evaluate": "log-likelihood of test data with its standard error; exact, or by annealed importance sampling",
    "vae": "train, measure and draw a variational or importance-weighted autoencoder",
    "compare": "RBM, DBM, VAE and IWAE side by side: likelihoods on the same test images, training time, samples",
    "info": "version, instruction sets, threads, GPU; or what a trained model is",
    "bench": "measure the speed beside other libraries (needs a source checkout)",
    "demo": "train on handwritten digits, print the test log-likelihood and draw pictures; under a minute",
}
"""Each command, a module of this package, and what it does."""

EXAMPLES = """\
examples:
  bm-fast demo                                   train on handwritten digits and look at the pictures; a minute
  bm-fast train mnist --hidden 500 --epochs 30 --output runs/mnist500
  bm-fast sample runs/mnist500 --sweeps 1000     samples as an array and as a picture
  bm-fast evaluate runs/mnist500                 test log-likelihood, with its standard error
  bm-fast train --resume runs/mnist500 --epochs 60

Each command explains itself: bm-fast train --help. Files of results go into the folder that --output names.
Exit codes: 0 done; 2 refused before any work: wrong options, or data, models and folders that cannot be used;
1 failed later; 130 interrupted (what could be saved was saved)."""


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The command line, with the arguments of the chosen command alone: a command loads torch, which takes a second."""
    top = argparse.ArgumentParser(
        prog="bm-fast",
        description="Trains, samples and measures Boltzmann machines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"bm-fast {version()}")
    commands = top.add_subparsers(metavar="command", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name != chosen:
            continue
        command = import_module(f"bm_fast.cli.{name}")
        sub.description, sub.epilog = command.__doc__, command.EXAMPLES
        command.add_arguments(sub)
        general = sub.add_argument_group("general")
        general.add_argument("--json", action="store_true", help="print one JSON object; all other text goes to stderr")
        least = "1" if name == "demo" else "as many as torch uses"
        general.add_argument("--threads", type=whole(1, 4096), metavar="N", help=f"threads to use (default: {least})")
        general.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = next((word for word in given if not word.startswith("-")), None)
    try:
        options = parser(chosen).parse_args(given)
    except SystemExit:
        emit("", sys.stdout, end="")  # a reader of --help may have gone
        raise
    except KeyboardInterrupt:  # while torch is loaded
        return _ended({"error": "interrupted"}, 130, as_json="--json" in given)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    console = Console(options.json)
    try:
        result, code = options.run(options, console), 0
    except KeyboardInterrupt as stopped:
        result, code = {"error": str(stopped) or "interrupted"}, 130
    except Exception as error:  # the one place where any failure becomes a line and an exit code
        if options.debug:
            raise
        result, code = {"error": _one_line(error)}, 2 if isinstance(error, UsageError) else 1
    return _ended(result, code, as_json=options.json)


def _ended(result: Result, code: int, *, as_json: bool) -> int:
    """Prints what a command ended with, and gives back its exit code."""
    if "error" in result:
        emit(f"bm-fast: {result['error']}", sys.stderr)
    if as_json:
        emit(json.dumps(plain({**result, "exit_code": code})), sys.stdout)
    return code


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__}: {text}"
