"""Which device and number format to compute in, refused early and by name where it cannot be."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from bidir_core.common.errors import UserError
from bidir_core.common.process import give_back, launched

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def available_devices() -> list[str]:
    """The names that ``--device`` takes here, besides ``auto``."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` takes a GPU if there is one.

    Under ``accelerate launch`` each process takes the GPU of its local rank. Raises UserError for
    a device that is not there, naming those that are, and where processes would share a GPU.
    """
    # Read when CUDA starts: how much work may wait for a GPU. With the usual queue, the probe's
    # questions stand behind the launches of whole batches.
    os.environ.setdefault("CUDA_SCALE_LAUNCH_QUEUES", "4x")
    available = available_devices()
    if name == "auto":
        name = next((kind for kind in ("cuda", "mps") if kind in available), "cpu")
    if name not in available:
        raise UserError(
            f"device '{name}' is not there; this machine has {', '.join(available)} (or say auto)"
        )
    if name == "cuda":
        n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        n_gpus = torch.cuda.device_count()
        if n_processes > n_gpus:
            raise UserError(
                f"{n_processes} processes were started here, one GPU each, but there are {n_gpus}; "
                f"give --num_processes {n_gpus}"
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if launched() > 1 and (name == "mps" or name.startswith("cuda:")):
        raise UserError(
            f"device '{name}' is one GPU, and each of {launched()} processes takes its own; say "
            f"{'cpu' if name == 'mps' else 'cuda or auto'}"
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is float32 on a CPU and bfloat16 on a GPU.

    Raises UserError for an unknown name, and for a dtype that the device cannot compute in.
    """
    if name == "auto":
        name = "float32"
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            name = "bfloat16"
    name = _SHORT.get(name, name)
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}'; use auto, {', '.join(DTYPES)}")
    if not can_compute(device, DTYPES[name]):
        raise UserError(f"device '{device}' cannot compute in {name}; use --dtype float32")
    return DTYPES[name]


def device_name(device: torch.device) -> str:
    """What the device is called in records: the GPU's product name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory_bytes(device: torch.device) -> dict[str, int]:
    """The most memory this process has held: resident on the host, allocated on the GPU."""
    peak = {"host": 0}
    try:  # the high-water mark of this program alone; rusage inherits the parent's across exec
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak["host"] = int(line.split()[1]) * 1024
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


def forget_peak_memory(device: torch.device) -> None:
    """Begin a new peak: what an earlier run in this process took on the GPU is not this one's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def can_compute(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a matrix product and an attention of this dtype really run on the device."""
    if device.type == "cuda" and dtype is torch.bfloat16:
        # Older GPUs emulate it, slowly; PyTorch knows.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        x = torch.ones(1, 1, 2, 8, dtype=dtype, device=device)
        attended = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return bool((attended @ x.mT).softmax(-1).isfinite().all())
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes that the device has, and those that are free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    host = psutil.virtual_memory()
    return host.total, host.available


def teraflops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of three matrix products, in 1e12 operations a second."""
    size = 4096 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first one warms up
        finish(device)
        start = time.perf_counter()
        a @ a
        finish(device)
        seconds.append(time.perf_counter() - start)
    return round(2 * size**3 / min(seconds[1:]) / 1e12, 3)


def finish(device: torch.device) -> None:
    """Wait for what a device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# mallopt's names for: how many blocks may be mapped each by itself, and from how much free memory
# on it goes back to the system (malloc.h).
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1


@contextmanager
def reusing_memory(device: torch.device) -> Iterator[None]:
    """On a CPU, under glibc, keeps memory that is freed inside for what is allocated next.

    glibc gives each large tensor's pages back, and the system fills them with zeros before the next
    one gets them: an eighth of the time of scoring. At the end all that is free is given back.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or device.type != "cpu":
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 1 << 16)  # glibc's default
        give_back()


# Garbage collection that does not go through everything again and again.


@contextmanager
def at_rest() -> Iterator[None]:
    """Leaves what is in memory now, such as libraries, out of garbage collections inside.

    Going through all of it takes some tenths of a second, for which a GPU would wait. Can be nested.
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
