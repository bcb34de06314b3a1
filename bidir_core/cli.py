"""The command line. Commands are thin: they parse, call the library, and turn errors into exit 2."""

from __future__ import annotations

import argparse
import errno
import io
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from bidir_core.common.errors import UserError
from bidir_core.common.formatting import visible
from bidir_core.common.launch import (
    ProcessLost,
    asked_for_several,
    is_helper,
    launched,
    refuse_several,
)
from bidir_core.common.version import __version__

OK, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 1, 130
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
        print("interrupted; go on with --resume or the same line", file=sys.stderr)
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
            remedy = "; free some room and go on with --resume or the same line"
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
    for add in COMMANDS:
        add(commands)
    return parser


def _lazy(name: str, help_text: str, module: str) -> Callable[[Any], None]:
    """A command that lives in its own module: ``fill(parser)`` and ``run(parsed) -> int``."""

    def add(commands: Any) -> None:
        def run(parsed: argparse.Namespace) -> int:
            if name not in SHARED_OUT:
                refuse_several(name)
            elif asked_for_several():
                print(ONE_PROCESS, file=sys.stderr)
            code = import_module(f"bidir_core.{module}").run(parsed)
            if name in SHARED_OUT and launched() > 1:
                import_module("bidir_core.evaluate.processes").leave()
            return code

        parser = commands.add_parser(name, help=help_text, description=help_text)
        parser.set_defaults(run=run)
        parser.fill = lambda parser: import_module(f"bidir_core.{module}").fill(parser)

    return add


COMMANDS = [
    _lazy("eval", "Evaluate a model under a regime.", "commands.eval"),
    _lazy("finetune", "Fine-tune a model under a regime (stage 3).", "commands.finetune"),
    _lazy(
        "pipeline",
        "The whole experiment: stages 1, 2, 3B, 3C, 4, the non-prefill compare, the report. The "
        "same line goes on where it stopped.",
        "commands.pipeline",
    ),
    _lazy("probe", "Check that a model really attends as a regime says.", "commands.probe"),
    _lazy("compare", "Compare two runs item by item.", "commands.compare"),
    _lazy(
        "report",
        "Write what runs show, with its uncertainty, as Markdown or as one HTML file.",
        "commands.report",
    ),
    _lazy(
        "share",
        "Write a small website of what the runs show, to open from disk: scorecard, flips, why.",
        "commands.share",
    ),
    _lazy("assets", "Fetch or list the embedded model and data.", "commands.assets"),
    _lazy("doctor", "Say what this machine can do, and which models fit.", "commands.doctor"),
    _lazy("lab", "Sweep regimes on one model, with controls (dose-response).", "commands.lab"),
    _lazy(
        "serve-model",
        "A model behind standard input and output (for the app).",
        "commands.serve_model",
    ),
    _lazy("why", "Why an item flips: which layers, prompt tokens and strength.", "commands.why"),
    _lazy(
        "generate", "Continue a prompt under several regimes, side by side.", "commands.generate"
    ),
    _lazy(
        "attend", "Observe attention: where each layer and head really looks.", "commands.attend"
    ),
    _lazy(
        "recommend",
        "From unlabelled prompts: from which layer on may the prompt look ahead?",
        "commands.recommend",
    ),
    _lazy("import", "Read lm-eval's logged samples as a run.", "commands.import_lm_eval"),
    _lazy("export", "Write a run in lm-eval's format.", "commands.export"),
]
