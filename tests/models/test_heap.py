"""Garbage collection while a GPU waits."""

from __future__ import annotations

import gc

from bidir_core.models import devices


class Node:
    """Holds itself, so that only the collector can let go of it."""

    def __init__(self, gone: list[int]):
        self.me, self.gone = self, gone

    def __del__(self) -> None:
        self.gone.append(1)


def test_only_what_is_new_is_collected_inside_and_all_of_it_afterwards():
    gc.collect()
    gone: list[int] = []
    Node(gone)
    with devices.at_rest():
        with devices.at_rest():
            pass
        assert gc.get_freeze_count() > 1000  # the inner one left it to the outer one
        gc.collect()
        assert not gone
        Node(gone)
        gc.collect()
        assert len(gone) == 1
    gc.collect()
    assert len(gone) == 2
    assert not gc.get_freeze_count()


def test_a_sweep_collects_what_was_put_to_rest():
    gc.collect()
    gone: list[int] = []
    Node(gone)
    with devices.at_rest():
        devices.sweep()
        assert gone
        assert gc.get_freeze_count() > 1000
    devices.sweep()
    assert not gc.get_freeze_count()
