"""The command line. Commands are thin: they parse, call the library, and turn errors into exit 2."""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from bidir_core import __version__
from bidir_core.config import EvalConfig, add_arguments
from bidir_core.errors import UserError
from bidir_core.launched import ProcessLost, is_helper, refuse_several

OK, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 1, 130
# What a disk or a path can do to anybody; any other OSError is a bug and keeps its traceback.
DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG}


HEARD_SECONDS = 5.0
# What several processes of one `accelerate launch` do together.
SHARED_OUT = {"eval", "finetune", "pipeline"}


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
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 only when its results are on disk."""
    parser = build_parser()
    try:
        parsed = parser.parse_args(arguments)
        return parsed.run(parsed)
    except UserError as error:
        if is_helper():
            # Of several processes the main one says it; a launcher ends all once one has ended.
            time.sleep(HEARD_SECONDS)
        else:
            print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except ProcessLost as error:
        print(f"error: {error}", file=sys.stderr)
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
        print(f"error: {error.strerror}: {str(error.filename)[:200]}", file=sys.stderr)
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


def _command(commands: Any, name: str, help_text: str, run: Callable[[Any], int]) -> Parser:
    parser = commands.add_parser(name, help=help_text, description=help_text)

    def run_here(parsed: argparse.Namespace) -> int:
        if name not in SHARED_OUT:
            refuse_several(name)
        return run(parsed)

    parser.set_defaults(run=run_here)
    return parser


def _given(parsed: argparse.Namespace, *leave_out: str) -> dict[str, Any]:
    """The arguments that stood on the command line."""
    return {k: v for k, v in vars(parsed).items() if k not in ("run", *leave_out)}


def _add_estimate(parser: Parser) -> None:
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


def _estimate(config: Callable[[], Any], parsed: argparse.Namespace) -> int:
    if getattr(parsed, "resume", None) is not None:
        raise UserError("--estimate says what a new run takes; leave --resume out")
    from bidir_core.estimate_command import estimate_command

    return estimate_command(config(), parsed.estimate)


def _add_eval(commands: Any) -> None:
    parser = _command(commands, "eval", "Evaluate a model under a regime.", _run_eval)
    add_arguments(parser, EvalConfig)
    parser.add_argument(
        "--prefill-bidirectional",
        action="store_true",
        default=argparse.SUPPRESS,
        help="short for --regime bidirectional",
    )
    parser.add_argument(
        "--resume", metavar="RUN", default=None, help="finish this unfinished run (id or folder)"
    )
    _add_estimate(parser)


def _run_eval(parsed: argparse.Namespace) -> int:
    given = _given(parsed, "resume", "prefill_bidirectional", "estimate")
    if hasattr(parsed, "prefill_bidirectional"):
        if "regime" in given:
            raise UserError(
                "--regime and --prefill-bidirectional say the same thing twice; give one of them"
            )
        given["regime"] = "bidirectional"
    if parsed.resume is None and "model" not in given:
        raise UserError("--model is missing; name one, for example smollm2-135m-instruct")
    if parsed.resume is None:
        config = EvalConfig(**given)
    if hasattr(parsed, "estimate"):
        return _estimate(lambda: config, parsed)
    from bidir_core import evaluate

    if parsed.resume is not None:
        path = evaluate.resume(parsed.resume, given, runs_dir=given.get("runs_dir"))
    else:
        path = evaluate.evaluate(config)
    if not is_helper():
        print(path)
    return OK


def _add_probe(commands: Any) -> None:
    parser = _command(
        commands, "probe", "Check that a model really attends as a regime says.", _run_probe
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--regime", default="bidirectional", help="default: bidirectional")
    for flag in ("revision", "checkpoint"):
        parser.add_argument(f"--{flag}", default=None)
    for flag in ("dtype", "device", "attn"):
        parser.add_argument(f"--{flag}", default="auto")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _run_probe(parsed: argparse.Namespace) -> int:
    import json

    from bidir_core import models
    from bidir_core.probe import run_probe
    from bidir_core.regimes import parse_regime

    regime = parse_regime(parsed.regime)
    loaded = models.load(
        parsed.model,
        revision=parsed.revision,
        checkpoint=parsed.checkpoint,
        dtype=parsed.dtype,
        device=parsed.device,
        attn=parsed.attn,
        regime=regime,
    )
    report = run_probe(loaded, regime)
    if parsed.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        for check in report.checks:
            print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
        print(f"{'passed' if report.passed else 'FAILED'}: {parsed.model} under {regime}")
    return OK if report.passed else FAILED


def _add_compare(commands: Any) -> None:
    parser = _command(commands, "compare", "Compare two runs item by item.", _run_compare)
    parser.add_argument("run_a", metavar="RUN_A", help="the baseline: a run id or folder")
    parser.add_argument("run_b", metavar="RUN_B", help="the candidate")
    parser.add_argument("--metric", choices=("acc", "acc_norm"), default="acc")
    parser.add_argument(
        "--intersect", action="store_true", help="pair only the items that both runs have"
    )
    parser.add_argument(
        "--floor", metavar="RUN", help="a no-context run: also print what is kept above its score"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="how small a difference counts as none (default: 1 point)",
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def _run_compare(parsed: argparse.Namespace) -> int:
    from bidir_core.compare import compare_command

    return compare_command(parsed)


def _add_finetune(commands: Any) -> None:
    parser = _command(
        commands, "finetune", "Fine-tune a model under a regime (stage 3).", _run_finetune
    )
    parser.fill = _fill_finetune


def _fill_finetune(parser: Parser) -> None:
    from bidir_core.training.config import FinetuneConfig
    from bidir_core.training.goals import OBJECTIVES

    objectives = parser.add_mutually_exclusive_group()
    for one in OBJECTIVES.values():
        objectives.add_argument(
            one.flag,
            dest="objective",
            action="store_const",
            const=one.code,
            default=argparse.SUPPRESS,
            help=f"{one.code}: {one.what}",
        )
    add_arguments(parser, FinetuneConfig)
    parser.add_argument(
        "--resume", metavar="RUN", default=None, help="finish this unfinished run (id or folder)"
    )
    _add_estimate(parser)


def _run_finetune(parsed: argparse.Namespace) -> int:
    from bidir_core.training.config import FinetuneConfig
    from bidir_core.training.goals import OBJECTIVES

    given = _given(parsed, "resume", "estimate")
    if parsed.resume is None:
        if "model" not in given:
            raise UserError("--model is missing; name one, for example smollm2-135m-instruct")
        if "objective" not in given:
            flags = ", ".join(one.flag for one in OBJECTIVES.values())
            raise UserError(f"say what to train: one of {flags}")
    if hasattr(parsed, "estimate"):
        return _estimate(lambda: FinetuneConfig(**given), parsed)
    from bidir_core.training.finetune import resume_finetune, run_finetune

    if parsed.resume is not None:
        path = resume_finetune(parsed.resume, given, runs_dir=given.get("runs_dir"))
    else:
        path = run_finetune(FinetuneConfig(**given))
    if not is_helper():
        print(path)
    return OK


def _add_pipeline(commands: Any) -> None:
    parser = _command(
        commands,
        "pipeline",
        "The whole experiment: stages 1, 2, 3B, 3C, 4, the non-prefill compare, the report. The "
        "same line goes on where it stopped.",
        _run_pipeline,
    )
    parser.fill = _fill_pipeline


def _fill_pipeline(parser: Parser) -> None:
    from bidir_core.pipeline_config import PRESETS, PUBLISHED, PipelineConfig

    parser.add_argument(
        "--preset",
        default=PUBLISHED,
        metavar="{" + ",".join(PRESETS) + "}",
        help=f"settings to start from; other flags win over them (default: {PUBLISHED})",
    )
    add_arguments(parser, PipelineConfig)
    parser.add_argument("--out", metavar="FILE.md", help="the report (default: in runs/reports)")
    parser.add_argument("--csv", action="store_true", help="also write the report's tables")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the stages and their command lines only"
    )
    _add_estimate(parser)


def _run_pipeline(parsed: argparse.Namespace) -> int:
    given = _given(parsed, "preset", "out", "csv", "dry_run", "estimate")
    if "model" not in given:
        raise UserError("--model is missing; name one, for example smollm2-135m-instruct")
    if hasattr(parsed, "estimate"):
        from bidir_core.pipeline_config import from_preset

        return _estimate(lambda: from_preset(given, parsed.preset), parsed)
    from bidir_core.pipeline import pipeline_command

    return pipeline_command(
        given, preset=parsed.preset, out=parsed.out, csv=parsed.csv, only_plan=parsed.dry_run
    )


def _add_report(commands: Any) -> None:
    parser = _command(
        commands,
        "report",
        "Write what runs show, with its uncertainty, as Markdown or as one HTML file.",
        _run_report,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="run ids or folders; left out: a model's fullest set"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where the report goes: .md for Markdown, .html for one self-contained page with "
        "interactive charts and the flips",
    )
    parser.add_argument("--html", metavar="FILE.html", help="also write the self-contained page")
    parser.add_argument(
        "--paper",
        metavar="DIR",
        help="write a folder for a paper: figures, LaTeX tables, methods, references and a ledger "
        "of claims; a new or empty folder, or one that this made",
    )
    parser.add_argument(
        "--sections",
        metavar="A,B,..",
        help="only these sections, by key; a wrong one lists them all",
    )
    parser.add_argument("--csv", action="store_true", help="also write each table beside it")
    parser.add_argument("--model", help="whose runs to choose when none are named")
    parser.add_argument("--metric", choices=("acc", "acc_norm"), default="acc")
    parser.add_argument(
        "--margin",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="how small a difference counts as none (default: 1 point)",
    )
    parser.add_argument("--runs-dir", metavar="DIR", help="look for runs in this folder only")


def _run_report(parsed: argparse.Namespace) -> int:
    from bidir_core.report import report_command

    return report_command(parsed)


def _add_assets(commands: Any) -> None:
    parser = _command(
        commands, "assets", "Fetch or list the embedded model and data.", lambda _: OK
    )
    actions = parser.add_subparsers(metavar="action", required=True, parser_class=Parser)
    fetch = _command(actions, "fetch", "Fetch, verify and convert; nothing if ready.", _run_fetch)
    fetch.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="if left out, all but gemma3-270m, which has terms of its own",
    )
    _command(actions, "list", "Print name, version, state and folder of each.", _run_list)


def _run_fetch(parsed: argparse.Namespace) -> int:
    from bidir_core.assets.command import fetch_command

    return fetch_command(parsed)


def _run_list(parsed: argparse.Namespace) -> int:
    from bidir_core.assets.command import list_command

    return list_command(parsed)


def _lazy(name: str, help_text: str, module: str) -> Callable[[Any], None]:
    """A command that lives in its own module: ``fill(parser)`` and ``run(parsed) -> int``."""

    def add(commands: Any) -> None:
        def run(parsed: argparse.Namespace) -> int:
            return import_module(f"bidir_core.{module}").run(parsed)

        parser = _command(commands, name, help_text, run)
        parser.fill = lambda parser: import_module(f"bidir_core.{module}").fill(parser)

    return add


COMMANDS = [
    _add_eval,
    _add_finetune,
    _add_pipeline,
    _add_probe,
    _add_compare,
    _add_report,
    _add_assets,
    _lazy("doctor", "Say what this machine can do, and which models fit.", "doctor"),
    _lazy("lab", "Sweep regimes on one model, with controls (dose-response).", "lab.command"),
    _lazy("serve-model", "A model behind standard input and output (for the app).", "model_server"),
    _lazy("why", "Why an item flips: which layers, prompt tokens and strength.", "why"),
    _lazy("generate", "Continue a prompt under several regimes, side by side.", "generate_command"),
    _lazy("attend", "Observe attention: where each layer and head really looks.", "attend"),
    _lazy("import", "Read lm-eval's logged samples as a run.", "interop.lm_eval_import"),
    _lazy("export", "Write a run in lm-eval's format.", "interop.lm_eval_export"),
]
