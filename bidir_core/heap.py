"""Garbage collection that does not go through everything again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_rest() -> Iterator[None]:
    """Leaves what is in memory now, such as libraries, out of garbage collections inside.

    Going through all of it takes some tenths of a second, for which a GPU would wait. Nested uses
    leave it to the outermost one.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def sweep() -> None:
    """Collect all garbage now, what was put to rest included, so that a dead model's memory is free."""
    resting = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if resting:
        gc.freeze()
