"""``eval``: score a model's choices under a regime."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bidir_core.cli import (
    add_arguments,
    add_estimate,
    add_resume,
    estimate_instead,
    given_in,
    require_model,
)
from bidir_core.common.errors import UserError
from bidir_core.common.process import is_helper
from bidir_core.common.settings import from_json
from bidir_core.evaluate.config import EvalConfig
from bidir_core.regimes import CAUSAL, Regime, parse_regime, parse_regimes


def fill(parser: argparse.ArgumentParser) -> None:
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
        "items are encoded once, and each regime gets a run of its own, under the same --name. With "
        "several, --resume RUN finishes the run of one and makes those of the regimes behind it."
    )


def run(parsed: argparse.Namespace) -> int:
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

    def config(regime: Regime) -> EvalConfig:
        return EvalConfig(**{**given, "regime": str(regime)})

    if hasattr(parsed, "estimate"):
        return max(estimate_instead(partial(config, regime), parsed) for regime in regimes)
    from bidir_core.evaluate import evaluate

    if parsed.resume is None:
        paths = evaluate.evaluate_regimes(config(regimes[0]), regimes)
    elif len(regimes) == 1:
        paths = [evaluate.resume(parsed.resume, given, runs_dir=given.get("runs_dir"))]
    else:
        paths = _go_on(parsed.resume, given, regimes)
    if not is_helper():
        print(*paths, sep="\n")
    return 0


def _go_on(reference: str, given: dict[str, Any], regimes: Sequence[Regime]) -> list[Path]:
    """Finish the run of one of several regimes, then make those of the regimes behind it."""
    from bidir_core.evaluate import evaluate
    from bidir_core.models import devices
    from bidir_core.runs.find import find_run

    runs_dir = given.get("runs_dir")
    run = find_run(reference, roots=[runs_dir] if runs_dir else None)
    if (regime := parse_regime(run.regime)) not in regimes:
        raise UserError(f"the run '{run.id}' is of the regime {regime}, which --regime leaves out")
    path = evaluate.resume(run.path, {**given, "regime": str(regime)})
    remaining = regimes[regimes.index(regime) + 1 :]
    if not remaining:
        return [path]
    devices.sweep()  # two models need not fit at once
    recorded = from_json(EvalConfig, run.settings)
    config = replace(recorded, **{**given, "regime": str(remaining[0])})
    return [path, *evaluate.evaluate_regimes(config, remaining)]
