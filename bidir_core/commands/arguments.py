"""What several commands do with their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from bidir_core.errors import UserError


def given_in(parsed: argparse.Namespace, *leave_out: str) -> dict[str, Any]:
    """The settings that stood on the command line, without arguments of other kinds."""
    return {k: v for k, v in vars(parsed).items() if k not in ("run", *leave_out)}


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """The flag of the commands whose cost can be told before they run."""
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
    from bidir_core.estimate_command import estimate_command

    return estimate_command(make_config(), parsed.estimate)


def require_model(given: dict[str, Any]) -> None:
    """Refuse settings that name no model."""
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
        type=float,
        default=1.0,
        metavar="POINTS",
        help="how small a difference counts as none (default: 1 point)",
    )
