"""What this machine can do: devices, number formats, attention, disk, and which model fits where."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.process import package_versions
from bidir_core.data.assets import ASSETS, EMBEDDED_MODELS, cache_dir, default_names, state
from bidir_core.jobs.cost_model import Shape, bytes_needed, kind_of, shape_of
from bidir_core.runs.layout import runs_roots

# One of each size that people ask about; sizes are read from the names.
MODELS = (
    *EMBEDDED_MODELS,
    "Qwen/Qwen3-0.6B",
    "mistralai/Ministral-3-3B-Instruct-2512",
    "mistralai/Ministral-3-8B-Instruct-2512",
    "mistralai/Ministral-3-14B-Instruct-2512",
    "Qwen/Qwen3-32B",
)

# Families with a sliding window and with grouped heads, which a plain one has not.
PROBED_FAMILIES = ("llama", "gemma3")

# Each with the training settings that its memory depends on.
STAGES: dict[str, dict[str, str] | None] = {
    "evaluate": None,
    "fine-tune, LoRA": {"method": "lora"},
    "fine-tune, full": {"method": "full"},
}

DTYPES = ("float32", "bfloat16", "float16")

NATIVE = {
    True: "weights run as they are (--weights native)",
    False: "weights are de-quantised; --weights native needs a GPU of compute capability 8.9",
}

NEEDED_DISK_BYTES = 1_000_000_000  # the embedded model, the data, and room for runs


@dataclass(frozen=True)
class Device:
    """One device: its memory in bytes, what it computes in, and how fast it multiplies."""

    name: str
    product: str
    total_bytes: int
    free_bytes: int
    dtypes: dict[str, float]  # number format -> measured TFLOP/s of a matrix product
    attention: dict[str, str]  # "sdpa float32" -> "passes" or what failed
    native_weights: bool = False  # whether --weights native can run 8-bit weights as they are


@dataclass(frozen=True)
class Fit:
    """Whether one stage of a model fits one device: estimated bytes against those there are."""

    model: str
    stage: str
    device: str
    needed_bytes: float | None
    fits: bool | None


@dataclass(frozen=True)
class Diagnosis:
    """Everything ``doctor`` found. ``problems``: what keeps the embedded model from running."""

    python: str
    system: str
    packages: dict[str, str]
    devices: tuple[Device, ...]
    folders: dict[str, dict[str, Any]]
    assets: dict[str, str]
    fits: tuple[Fit, ...]
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at this machine; about ten seconds on a CPU. Loads tiny random models only."""
    devices = tuple(_devices())
    folders = _folders()
    problems = [
        f"{label}: {folder['path']} cannot be written"
        for label, folder in folders.items()
        if not folder["writable"]
    ]
    problems += [
        f"{label}: {folder['path']} has {folder['free_bytes'] / 1e9:.1f} GB free; "
        f"{NEEDED_DISK_BYTES / 1e9:.0f} GB are wanted"
        for label, folder in folders.items()
        if folder["free_bytes"] < NEEDED_DISK_BYTES
    ]
    problems += [
        f"{device.name}: attention {name} {outcome}"
        for device in devices
        for name, outcome in device.attention.items()
        if outcome != "passes"
    ]
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {os.cpu_count()} cores",
        packages=package_versions(),
        devices=devices,
        folders=folders,
        assets={name: str(state(name)) for name in ASSETS},
        fits=tuple(_fits(devices)),
        problems=tuple(problems),
    )


def _devices() -> Iterator[Device]:
    import torch

    from bidir_core.models.devices import available_devices, can_compute, memory, teraflops
    from bidir_core.models.quantised import can_multiply

    for name in available_devices():
        if name == "cuda":
            continue  # the same as cuda:0
        device = torch.device(name)
        total, free = memory(device)
        able = [kind for kind in DTYPES if can_compute(device, getattr(torch, kind))]
        yield Device(
            name=name,
            product=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            total_bytes=total,
            free_bytes=free,
            dtypes={kind: teraflops(device, getattr(torch, kind)) for kind in able},
            attention=_attention(device, [kind for kind in able if kind != "float16"]),
            native_weights=can_multiply(device),
        )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def layer_rate(shape: Shape, device: str, dtype: str) -> float | None:
    """Operations a second of one layer of this shape, timed for about a second.

    None where the device is not there or cannot compute in the dtype.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    from bidir_core.models.devices import choose_device, choose_dtype, finish

    try:
        torch_device = choose_device(device)
        torch_dtype = choose_dtype(dtype, torch_device)
    except UserError:
        return None
    rows, length = (8, 128) if torch_device.type == "cpu" else (256, 128)
    heads = shape.hidden // 64 if shape.hidden % 64 == 0 else 1
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    with torch.inference_mode():
        model: Any = LlamaModel(config)
        model.to(device=torch_device, dtype=torch_dtype)
        ids = torch.zeros(rows, length, dtype=torch.long, device=torch_device)
        model(input_ids=ids)  # the first pass warms up
        finish(torch_device)
        seconds: list[float] = []
        while sum(seconds) < 1.0:
            start = time.perf_counter()
            model(input_ids=ids, use_cache=False)
            finish(torch_device)
            seconds.append(time.perf_counter() - start)
    n_weights = sum(weights.numel() for weights in model.layers.parameters())
    per_token = 2 * n_weights + 4 * shape.hidden * length
    return per_token * rows * length / min(seconds)


def _attention(device: Any, dtypes: list[str]) -> dict[str, str]:
    import torch

    from bidir_core.models.attention import IMPLEMENTATIONS, Implementation
    from bidir_core.models.families import REGIMES, probe_family

    splits: tuple[Implementation, ...] = ("split",) if device.type == "cuda" else ()  # by ``auto``
    outcomes = {}
    for implementation in (*splits, *IMPLEMENTATIONS):
        for kind in dtypes:
            failures = [
                f"{family}, {regime}: {report.failures}"
                for family in PROBED_FAMILIES
                for regime in REGIMES
                if not (
                    report := probe_family(
                        family, implementation, regime, device=device, dtype=getattr(torch, kind)
                    )
                ).passed
            ]
            outcomes[f"{implementation} {kind}"] = failures[0] if failures else "passes"
    return outcomes


def _folders() -> dict[str, dict[str, Any]]:
    folders = {}
    for name, path in (("runs", runs_roots()[0]), ("cache", cache_dir())):
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        folders[name] = {
            "path": str(path),
            "free_bytes": shutil.disk_usage(existing).free,
            "writable": os.access(existing, os.W_OK),
        }
    return folders


def _fits(devices: tuple[Device, ...]) -> Iterator[Fit]:
    """With default batches; upper bounds, since every token is taken to predict one."""
    for model in MODELS:
        shape = shape_of(model)
        for device in devices:
            kind = kind_of(device.name)
            dtype = "bfloat16" if kind == "gpu" else "float32"
            for stage, tune in STAGES.items():
                n_bytes = bytes_needed(shape, None, kind, dtype, tune) if shape else None
                fits = None if n_bytes is None else n_bytes <= device.total_bytes
                yield Fit(model, stage, device.name, n_bytes, fits)


def to_text(diagnosis: Diagnosis) -> str:
    lines = [f"python {diagnosis.python} on {diagnosis.system}"]
    packages = [f"{name} {version}" for name, version in diagnosis.packages.items()]
    lines.append(", ".join(text for text in packages if not text.startswith("python ")))
    for device in diagnosis.devices:
        lines += [
            "",
            f"{device.name}: {device.product}, {_gigabytes(device.total_bytes)} "
            f"({_gigabytes(device.free_bytes)} free)",
            "  computes in  "
            + ", ".join(f"{kind} ({rate:g} TFLOP/s)" for kind, rate in device.dtypes.items()),
            "  mask probe   "
            + ", ".join(f"{name} {outcome}" for name, outcome in device.attention.items()),
            "  8-bit        " + NATIVE[device.native_weights],
        ]
    lines.append("")
    for label, folder in diagnosis.folders.items():
        access = "" if folder["writable"] else ", CANNOT BE WRITTEN"
        free = _gigabytes(folder["free_bytes"])
        lines.append(f"{label:6s} {folder['path']}, {free} free{access}")
    for name, found in diagnosis.assets.items():
        optional = found == "missing" and name not in default_names()
        lines.append(f"asset  {name}: {found}" + (" (optional)" if optional else ""))
    lines += ["", "What fits, by estimate (memory needed):"]
    for model in dict.fromkeys(fit.model for fit in diagnosis.fits):
        lines.append(f"  {model}")
        for stage in dict.fromkeys(fit.stage for fit in diagnosis.fits):
            fits = [fit for fit in diagnosis.fits if (fit.model, fit.stage) == (model, stage)]
            cells = [f"{fit.device}: {_verdict(fit)}" for fit in fits]
            lines.append(f"    {stage:16s} " + ", ".join(cells))
    lines.append("")
    lines += [f"problem: {problem}" for problem in diagnosis.problems] or ["no problems found"]
    return "\n".join(lines)


def _verdict(fit: Fit) -> str:
    if fit.needed_bytes is None:
        return "unknown size"
    return f"{'fits' if fit.fits else 'does NOT fit'} ({_gigabytes(fit.needed_bytes)})"


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
