"""Memory: garbage collection while a GPU waits, and what a CPU frees between batches."""

import gc
import resource
import sys

import pytest
import torch

from bidir_core.models import devices

pytestmark = pytest.mark.usefixtures("real_gc")


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


def page_faults(n: int, megabytes: int) -> int:
    """How many pages the system handed out while as many tensors came and went."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(megabytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.alone  # what other tests left on the heap decides where memory comes from
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc has it")
def test_freed_memory_is_used_again():
    pages = (64 << 20) // resource.getpagesize()
    with devices.reusing_memory(torch.device("cpu")):
        page_faults(20, 64)
        assert page_faults(20, 64) < 2 * pages
    assert page_faults(2, 64) > pages  # it went back at the end
