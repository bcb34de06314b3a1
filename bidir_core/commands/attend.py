"""``attend``: where each layer and head really looks."""

from __future__ import annotations

import argparse

from bidir_core.cli import add_arguments, add_resume, given_in, require_model
from bidir_core.explain.configs import DEFAULT_REGIMES, AttendConfig, absolute_tasks
from bidir_core.regimes import parse_regime


def fill(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, AttendConfig)
    parser.add_argument(
        "--regime",
        action="append",
        metavar="REGIME",
        help="who sees whom; give it twice to compare two, for averages up to four times "
        f"(default: {' and '.join(DEFAULT_REGIMES)})",
    )
    add_resume(parser)


def run(parsed: argparse.Namespace) -> int:
    given = given_in(parsed, "regime", "resume")
    if parsed.regime is not None:
        given["regimes"] = tuple(str(parse_regime(regime)) for regime in parsed.regime)
    if "task" in given:
        given["task"] = absolute_tasks(given["task"])
    if parsed.resume is None:
        require_model(given)
    config = None if parsed.resume is not None else AttendConfig(**given)
    from bidir_core.explain.attend import attend, resume_attend

    if config is None:
        print(resume_attend(parsed.resume, given))
    else:
        print(attend(config))
    return 0
