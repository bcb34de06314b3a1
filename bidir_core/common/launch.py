"""How this process was started: alone, or as one of several by ``accelerate launch``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from bidir_core.common.errors import UserError


class ProcessLost(RuntimeError):
    """Another process of this launch failed or died; a resumed run continues from what was recorded."""


@contextmanager
def told_when_lost(advice: str) -> Iterator[None]:
    """ProcessLost, one clear line, where working together failed because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        # What the communication libraries say when the other end of a connection has died.
        match = re.search("gloo|nccl|connection (reset|closed)", str(error), re.IGNORECASE)
        if launched() == 1 or match is None:
            raise
        raise ProcessLost(
            f"another of the {launched()} processes failed or died; {advice}"
        ) from error


def launched() -> int:
    """How many processes this one was launched with, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_helper() -> bool:
    """Whether this is not the main process of its launch (which alone prints)."""
    return launched() > 1 and os.environ.get("RANK", "0") != "0"


def asked_for_several() -> bool:
    """Whether ``accelerate launch`` was asked for several processes and started this one alone.

    It does so without ``--multi_gpu``, and with ``--cpu``: there it leaves several to MPI. Only
    this way of starting sets ACCELERATE_USE_CPU, and an address to meet at for more than one.
    """
    by_mpi = any(f"{kind}_SIZE" in os.environ for kind in ("PMI", "OMPI_COMM_WORLD"))
    asked = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()
    return asked and "WORLD_SIZE" not in os.environ and not by_mpi


def refuse_several(command: str) -> None:
    """UserError where a command that is not shared out was launched in several processes."""
    if launched() > 1:
        raise UserError(
            f"'{command}' runs in one process, not {launched()}: start it without accelerate "
            "launch, or with --num_processes 1"
        )
