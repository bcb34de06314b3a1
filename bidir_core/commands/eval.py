"""``eval``: score a model's choices under a regime."""

from __future__ import annotations

import argparse

from bidir_core.commands.arguments import (
    add_arguments,
    add_estimate,
    add_resume,
    estimate_instead,
    given_in,
    require_model,
)
from bidir_core.common.errors import UserError
from bidir_core.common.launch import is_helper
from bidir_core.evaluate.config import EvalConfig


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core eval``."""
    add_arguments(parser, EvalConfig)
    parser.add_argument(
        "--prefill-bidirectional",
        action="store_true",
        default=argparse.SUPPRESS,
        help="short for --regime bidirectional",
    )
    add_resume(parser)
    add_estimate(parser)


def run(parsed: argparse.Namespace) -> int:
    """Evaluate, or go on with an evaluation, and print the run's folder."""
    given = given_in(parsed, "resume", "prefill_bidirectional", "estimate")
    if hasattr(parsed, "prefill_bidirectional"):
        if "regime" in given:
            raise UserError(
                "--regime and --prefill-bidirectional say the same thing twice; give one of them"
            )
        given["regime"] = "bidirectional"
    if parsed.resume is None:
        require_model(given)
        config = EvalConfig(**given)
    if hasattr(parsed, "estimate"):
        return estimate_instead(lambda: config, parsed)
    from bidir_core.evaluate import evaluate

    if parsed.resume is not None:
        path = evaluate.resume(parsed.resume, given, runs_dir=given.get("runs_dir"))
    else:
        path = evaluate.evaluate(config)
    if not is_helper():
        print(path)
    return 0
