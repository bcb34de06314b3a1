"""``eval``: score a model's choices under a regime."""

from __future__ import annotations

import argparse
from functools import partial

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
from bidir_core.regimes import CAUSAL, Regime, parse_regimes


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
    parser.epilog = (
        "--regime takes several, such as causal,bidirectional:sink=1. The model is loaded and the "
        "items are encoded once, and each regime gets a run of its own, under the same --name."
    )


def run(parsed: argparse.Namespace) -> int:
    """Evaluate, or go on with an evaluation, and print the run's folder."""
    given = given_in(parsed, "resume", "prefill_bidirectional", "estimate")
    if hasattr(parsed, "prefill_bidirectional"):
        if "regime" in given:
            raise UserError(
                "--regime and --prefill-bidirectional say the same thing twice; give one of them"
            )
        given["regime"] = "bidirectional"
    regimes = parse_regimes(given.get("regime", str(CAUSAL)))
    if parsed.resume is None:
        require_model(given)
    elif len(regimes) > 1:
        raise UserError("--resume finishes one run, of one regime; leave --regime out")

    def config(regime: Regime) -> EvalConfig:
        return EvalConfig(**{**given, "regime": str(regime)})

    if hasattr(parsed, "estimate"):
        return max(estimate_instead(partial(config, regime), parsed) for regime in regimes)
    from bidir_core.evaluate import evaluate

    if parsed.resume is not None:
        paths = [evaluate.resume(parsed.resume, given, runs_dir=given.get("runs_dir"))]
    else:
        paths = evaluate.evaluate_regimes(config(regimes[0]), regimes)
    if not is_helper():
        print(*paths, sep="\n")
    return 0
