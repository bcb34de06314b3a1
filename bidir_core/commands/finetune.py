"""``finetune``: train a model under a regime (stage 3)."""

from __future__ import annotations

import argparse

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
from bidir_core.train.config import OBJECTIVES, FinetuneConfig


def fill(parser: argparse.ArgumentParser) -> None:
    objectives = parser.add_mutually_exclusive_group()
    for objective in OBJECTIVES.values():
        objectives.add_argument(
            objective.flag,
            dest="objective",
            action="store_const",
            const=objective.code,
            default=argparse.SUPPRESS,
            help=f"{objective.code}: {objective.what}",
        )
    add_arguments(parser, FinetuneConfig)
    add_resume(parser)
    add_estimate(parser)


def run(parsed: argparse.Namespace) -> int:
    given = given_in(parsed, "resume", "estimate")
    if parsed.resume is None:
        require_model(given)
        if "objective" not in given:
            flags = ", ".join(objective.flag for objective in OBJECTIVES.values())
            raise UserError(f"say what to train: one of {flags}")
    if hasattr(parsed, "estimate"):
        return estimate_instead(lambda: FinetuneConfig(**given), parsed)
    from bidir_core.train.finetune import resume_finetune, run_finetune

    if parsed.resume is not None:
        path = resume_finetune(parsed.resume, given, runs_dir=given.get("runs_dir"))
    else:
        path = run_finetune(FinetuneConfig(**given))
    if not is_helper():
        print(path)
    return 0
