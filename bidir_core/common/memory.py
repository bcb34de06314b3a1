"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa


def give_back() -> None:
    """After much was read and dropped: the allocators of Arrow and of the C library keep it otherwise.

    The C library's only where it is glibc.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
