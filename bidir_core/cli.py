"""The command line. Commands are thin: they parse, call the library, and turn errors into exit 2."""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from bidir_core.common.errors import UserError
from bidir_core.common.files import visible
from bidir_core.common.process import (
    ProcessLost,
    asked_for_several,
    is_helper,
    launched,
    refuse_several,
)
from bidir_core.common.settings import flag_of, parse_value, settings_of
from bidir_core.common.version import __version__

OK, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 1, 130
GO_ON = "go on with --resume RUN where the command has it, else with the same line"
# Trouble with a disk or a path; any other OSError is a bug and keeps its traceback.
DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG}

HEARD_SECONDS = 5.0  # for the main process of several to print its error
# What several processes of one `accelerate launch` do together.
SHARED_OUT = {"eval", "finetune", "pipeline"}
ONE_PROCESS = (
    "warning: accelerate started one process only; --multi_gpu, without --cpu, starts several, on "
    "CPUs too"
)


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one line instead of the whole usage.

    ``fill`` adds a command's arguments once that command is chosen: those of training take
    seconds to import, which no other command should wait for.
    """

    fill: Callable[[Parser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        print(f"error: {visible(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 only when its results are on disk."""
    # Before torch is imported: on a busy CPU, threads that spin for long while they wait hold up
    # those they wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a model's characters
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    try:
        parsed = parser.parse_args(arguments)
        return parsed.run(parsed)
    except UserError as error:
        if is_helper():
            # The main process prints it; a launcher ends them all once one has ended.
            time.sleep(HEARD_SECONDS)
        else:
            print(f"error: {visible(error)}", file=sys.stderr)
        return BAD_INPUT
    except ProcessLost as error:
        print(f"error: {visible(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {GO_ON}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `... | head` closed our output
        sys.stderr.close()
        return FAILED
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        path = f": {visible(error.filename)[:200]}" if error.filename else ""
        remedy = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"; free some room and {GO_ON}"
        print(f"error: {error.strerror}{path}{remedy}", file=sys.stderr)
        return BAD_INPUT if error.errno == errno.ENAMETOOLONG else FAILED


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m bidir_core",
        description="How much does bidirectional prefill hurt a language model, why, and can a "
        "fine-tune repair it?",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=partial(_run, name))
        command.fill = lambda parser, name=name: _module_of(name).fill(parser)
    return parser


# Each lives in a module of its own name: ``fill(parser)`` and ``run(parsed) -> int``.
COMMANDS = {
    "eval": "Evaluate a model under a regime.",
    "finetune": "Fine-tune a model under a regime (stage 3).",
    "pipeline": "The whole experiment: stages 1, 2, 3B, 3C, 4, the non-prefill compare, the report. "
    "The same line goes on where it stopped.",
    "probe": "Check that a model really attends as a regime says.",
    "compare": "Compare two runs item by item.",
    "report": "Write what runs show, with its uncertainty, as Markdown or as one HTML file.",
    "share": "Write a small website of what the runs show, to open from disk: scorecard, flips, why.",
    "assets": "Fetch or list the embedded model and data.",
    "doctor": "Say what this machine can do, and which models fit.",
    "lab": "Sweep regimes on one model, with controls (dose-response).",
    "serve-model": "A model behind standard input and output (for the app).",
    "why": "Why an item flips: which layers, prompt tokens and strength.",
    "generate": "Continue a prompt under several regimes, side by side.",
    "attend": "Observe attention: where each layer and head really looks.",
    "recommend": "From unlabelled prompts: from which layer on may the prompt look ahead?",
    "import": "Read lm-eval's logged samples as a run.",
    "export": "Write a run in lm-eval's format.",
}


def _module_of(name: str) -> Any:
    """Imported once its command is chosen."""
    name = {"import": "import_lm_eval"}.get(name, name.replace("-", "_"))
    return import_module(f"bidir_core.commands.{name}")


def _run(name: str, parsed: argparse.Namespace) -> int:
    if name not in SHARED_OUT:
        refuse_several(name)
    elif asked_for_several():
        print(ONE_PROCESS, file=sys.stderr)
    code = _module_of(name).run(parsed)
    if name in SHARED_OUT and launched() > 1:
        import_module("bidir_core.evaluate.processes").leave()
    return code


# What several commands do with their arguments.


def given_in(parsed: argparse.Namespace, *leave_out: str) -> dict[str, Any]:
    """The settings that stood on the command line, without arguments of other kinds."""
    return {k: v for k, v in vars(parsed).items() if k not in ("run", *leave_out)}


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """The flag of the commands whose cost can be estimated before they run."""
    parser.add_argument(
        "--estimate",
        nargs="?",
        type=int,
        const=0,
        default=argparse.SUPPRESS,
        metavar="G",
        help="print the time and memory this would take, on G devices if given, and stop: no "
        "weights are loaded and nothing is written",
    )


def estimate_instead(make_config: Callable[[], Any], parsed: argparse.Namespace) -> int:
    """What ``--estimate`` prints in place of running the command. Checks the settings first."""
    if getattr(parsed, "resume", None) is not None:
        raise UserError("--estimate says what a new run takes; leave --resume out")
    return estimate_command(make_config(), parsed.estimate)


def estimate_command(config: Any, n_devices: int = 0) -> int:
    """Print the estimate of a command's configuration, on so many devices; always returns 0."""
    # Here, since other commands should not wait for what these import.
    from bidir_core.jobs.doctor import layer_rate
    from bidir_core.jobs.estimate import estimated, to_text

    estimate = estimated(config, n_devices, layer_rate=layer_rate)
    if estimate.memory_bytes is None:
        raise UserError(
            f"{estimate.basis[0]}: name it with its size (such as owner/name-3B), or give its folder"
        )
    if not is_helper():
        print(to_text(estimate, config))
    return 0


def require_model(given: dict[str, Any]) -> None:
    if "model" not in given:
        raise UserError("--model is missing; name one, for example smollm2-135m-instruct")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The flag of the commands whose runs can be finished later."""
    parser.add_argument(
        "--resume", metavar="RUN", default=None, help="finish this unfinished run (id or folder)"
    )


def add_pairing(parser: argparse.ArgumentParser) -> None:
    """How runs are compared: by which score, and which difference counts as none."""
    parser.add_argument("--metric", choices=("acc", "acc_norm"), default="acc")
    parser.add_argument(
        "--margin",
        type=_margin,
        default="1",
        metavar="POINTS",
        help="how small a difference counts as none (default: 1 point)",
    )


def _margin(text: str) -> float:
    """Points on the command line, a fraction inside."""
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not 0 < points < 100:
        raise argparse.ArgumentTypeError(f"{text}: give a number of points above 0, such as 1")
    return points / 100


def add_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add one argument per field. Arguments not given stay absent from the parsed namespace."""
    for spec in settings_of(config_class):
        if not spec.metadata["cli"]:
            continue
        kind, help_text = str(spec.type), spec.metadata["help"]
        if spec.default is MISSING:
            help_text += " (required for a new run)"
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if kind == "bool":
            options["action"] = argparse.BooleanOptionalAction if spec.default else "store_true"
        else:
            options["type"] = _argument(spec)
            choices = spec.metadata["choices"]
            options["metavar"] = spec.metadata["metavar"] or (
                "{" + ",".join(choices) + "}" if choices else spec.name.split("_")[-1].upper()
            )
            if spec.default not in (MISSING, None):
                shown = ",".join(spec.default) if kind.startswith("tuple") else spec.default
                help_text += f" (default: {shown})"
        parser.add_argument(flag_of(spec), help=help_text.replace("%", "%%"), **options)


def _argument(spec: Field[Any]) -> Any:
    """A field's converter as argparse wants it: it names the flag itself."""

    def convert(text: str) -> Any:
        try:
            return parse_value(spec, text)
        except UserError as error:
            message = str(error).removeprefix(flag_of(spec)).strip()
            raise argparse.ArgumentTypeError(message) from None

    return convert
