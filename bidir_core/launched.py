"""How this process was started: alone, or as one of several by ``accelerate launch``."""

from __future__ import annotations

import os

from bidir_core.errors import UserError


class ProcessLost(RuntimeError):
    """Another process of this launch failed or died; what was recorded can be gone on with."""


def launched() -> int:
    """How many processes this one was launched with, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_helper() -> bool:
    """Whether this is not the main process of its launch (which does the talking)."""
    return launched() > 1 and os.environ.get("RANK", "0") != "0"


def refuse_several(command: str) -> None:
    """UserError where a command that is not shared out was launched in several processes."""
    if launched() > 1:
        raise UserError(
            f"'{command}' runs in one process, not {launched()}: start it without accelerate "
            "launch, or with --num_processes 1"
        )
