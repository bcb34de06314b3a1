"""How this process was started: alone, or as one of several by ``accelerate launch``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from bidir_core.errors import UserError


class ProcessLost(RuntimeError):
    """Another process of this launch failed or died; what was recorded can be gone on with."""


@contextmanager
def told_when_lost(way_on: str) -> Iterator[None]:
    """ProcessLost, one clear line, where working together failed because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        # What the communication libraries say when the other end of a connection has died.
        gone = re.search("gloo|nccl|connection (reset|closed)", str(error), re.IGNORECASE)
        if launched() == 1 or gone is None:
            raise
        raise ProcessLost(
            f"another of the {launched()} processes failed or died; {way_on}"
        ) from error


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
