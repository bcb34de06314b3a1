"""Do the ways to compute agree on this device? Two minutes before long measurements are trusted.

    python -m benchmarks.gpu_check --tokenizer DIR --out check     # on a GPU
    python -m benchmarks.gpu_check --device cpu                    # what can be checked on a CPU

``attention``: every implementation against sdpa in float32, forward for packed rows of items under
several regimes. ``weights native``: 8-bit weights as they are, against what they mean.
``training``: the losses of some steps with ``--compile default`` and ``reduce-overhead`` against
those with ``none``. Each check is a line ``ok`` or ``FAILED`` and a row of ``OUT.json``; one that
fails keeps none of the others from running.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend

from benchmarks import eight_bits
from benchmarks.full_shape import apart, build, clear, hidden, now, peak_gb
from bidir_core.models import fused
from bidir_core.models.attention import Implementation, install
from bidir_core.models.devices import choose_device, device_name
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.models.quantised import can_multiply
from bidir_core.regimes import BIDIRECTIONAL
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.loop import Trainer
from bidir_core.train.losses import passes
from bidir_core.train.packing import EncodedSamples, Packer
from bidir_core.train.student import Student, compile_layers

REGIMES = ("causal", "bidirectional", "bidirectional:sink=2,tail=1", "bidirectional:lambda=0.3")
ATTENTIONS: tuple[Implementation, ...] = ("sdpa", "split")
# (prefix, total) of a row's items: short ones, and one across several blocks of 128
ROWS = (((9, 12), (1, 2), (6, 6), (40, 61)), ((300, 340), (100, 129), (7, 9)))
STEPS = 12


def main(arguments: list[str] | None = None) -> int:
    """Run every check; 1 if one failed, 2 if there is none to run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--tokenizer", help="a folder whose config.json is the model to train (default: a tiny one)"
    )
    parser.add_argument("--seconds", type=float, default=120, help="begin no check behind them")
    parser.add_argument("--only", default="", help="checks whose names hold this")
    parser.add_argument("--out", help="path of a file of rows, without .json")
    options = parser.parse_args(arguments)
    device, started = choose_device(options.device), time.monotonic()
    rows: list[dict[str, Any]] = []
    losses: dict[str, list[float]] = {}
    all_checks = list(checks(device, options.tokenizer, losses))
    wanted = [(name, check) for name, check in all_checks if options.only in name]
    if not wanted:
        names = "; ".join(name for name, _ in all_checks)
        message = f"error: --only '{options.only}': no such check on {device}; there are: {names}"
        print(message, file=sys.stderr)
        return 2
    for name, check in wanted:
        if time.monotonic() - started > options.seconds:
            continue
        clear(device)
        compiled, check_started = counters["stats"]["unique_graphs"], now(device)
        try:
            row = check()
        except Exception as error:
            traceback.print_exc()
            message = " ".join(str(error).split())[:300]
            row = {"ok": False, "failed": f"{type(error).__name__}: {message}"}
        row |= {"compiled": counters["stats"]["unique_graphs"] - compiled}
        rows.append({"check": name, **row, "seconds": round(now(device) - check_started, 1)})
        print("ok" if row["ok"] else "FAILED", json.dumps(rows[-1]), flush=True)
        if options.out:
            facts = {"device": device_name(device), "torch": torch.__version__, "rows": rows}
            Path(options.out).with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    return int(not all(row["ok"] for row in rows))


def checks(
    device: torch.device, model: str | None, losses: dict[str, list[float]]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work of each check, the important ones first."""
    gpu = device.type == "cuda"
    yield "attention backends", partial(backends, device)
    if can_multiply(device):
        yield "weights native", partial(eight_bits.check_native, device, REGIMES)
    heads = [(128, torch.bfloat16), (64, torch.float32)] if gpu else [(16, torch.float32)]
    for attn in ATTENTIONS:
        for head_dim, dtype in heads:
            name = f"attention {attn}, heads of {head_dim}, {str(dtype).removeprefix('torch.')}"
            yield name, partial(forward, attn, head_dim, dtype, device)
    for head_dim, dtype in heads:
        name = f"fused kernels, heads of {head_dim}, {str(dtype).removeprefix('torch.')}"
        yield name, partial(fused_kernels, head_dim, dtype, device)
    for mode in ("none", "reduce-overhead", "default"):
        yield f"training {mode}", partial(training, mode, device, model, losses)


# --- attention ------------------------------------------------------------------------------


def backends(device: torch.device) -> dict[str, Any]:
    """Which of sdpa's kernels each kind of call takes, in bfloat16; ``MATH`` holds all scores."""

    def chosen(time: int, masked: bool, **options: Any) -> str:
        empty = partial(torch.empty, device=device, dtype=torch.bfloat16)
        query = empty(2, time, 32, 128).transpose(1, 2)
        key = empty(2, time, 32 if masked else 8, 128).transpose(1, 2)
        mask = empty(2, 1, time, time) if masked else None
        number = torch._fused_sdp_choice(query, key, key, mask, 0.0, **options)
        return SDPBackend(number).name

    kernels = {
        "no mask, grouped heads": chosen(512, False, enable_gqa=True),
        "causal, grouped heads": chosen(512, False, is_causal=True, enable_gqa=True),
        "mask": chosen(512, True),
        "mask, odd length": chosen(101, True),
    }
    return {"ok": device.type == "cpu" or "MATH" not in kernels.values(), **kernels}


def small(head_dim: int, dtype: torch.dtype, device: torch.device, attn: str) -> LoadedModel:
    """Two layers with grouped heads; the same weights each time. Short prefixes are split too."""
    shape = {"head_dim": head_dim, "num_attention_heads": 8}
    loaded = build("tiny", range(512), device, dtype, attn, **shape)
    loaded.handle.split_from = 0
    return loaded


def forward(
    attn: Implementation, head_dim: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Last hidden states of packed rows under each regime."""
    exact = small(head_dim, torch.float32, device, "sdpa")
    exact.model.load_state_dict(small(head_dim, dtype, device, "sdpa").model.state_dict())
    tested = small(head_dim, dtype, device, attn)
    largest = 0.0
    for lengths in ROWS:
        layout = Layout.pack(lengths)
        ids = torch.arange(layout.shape[1])[None] * 7 % 512
        for text in REGIMES:
            theirs = hidden(exact, layout, ids, text)
            ours = hidden(tested, layout, ids, text)
            largest = max(largest, apart(ours, theirs))
    allowed = 1e-4 if dtype == torch.float32 else 0.03
    return {"ok": largest <= allowed, "difference": float(f"{largest:.3g}"), "allowed": allowed}


def fused_kernels(head_dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Last hidden states with and without :mod:`bidir_core.models.fused`, which rounds as the model does."""
    loaded = small(head_dim, dtype, device, "sdpa")
    layout = Layout.pad([(9, 12), (30, 41), (6, 6)])
    ids = torch.arange(layout.item.numel()).reshape(layout.shape) * 7 % 512
    fused.restore(loaded.model)
    theirs = hidden(loaded, layout, ids, "bidirectional")
    running = fused.fuse(loaded.model)
    ours = hidden(loaded, layout, ids, "bidirectional")
    difference = apart(ours, theirs)
    allowed = 1e-5 if dtype == torch.float32 else 2e-3
    attention = ["attention"] if dtype.itemsize == 2 else []  # that kernel is for 16 bits
    complete = device.type == "cpu" or running == [*attention, "gates", "norms", "rotary"]
    return {
        "ok": difference <= allowed and complete,
        "running": running,
        "difference": float(f"{difference:.3g}"),
        "allowed": allowed,
    }


# --- training -------------------------------------------------------------------------------


def training(
    kind: str, device: torch.device, model: str | None, losses: dict[str, list[float]]
) -> dict[str, Any]:
    """The losses of some steps; ``none``, which comes first, is what the others have to meet."""
    loaded = random_model(model, device)
    student = Student(loaded.model.requires_grad_(True), loaded.handle)
    student.model.train()
    config = FinetuneConfig(
        model="random", objective="3B", compile=kind, steps=STEPS, lr=3e-4, warmup_steps=3
    )
    if kind != "none" and device.type == "cuda":
        compile_layers(student)
    tiny = device.type == "cpu"
    packer = Packer(
        random_samples(student.vocabulary, 40 if tiny else 400),
        batch_samples=8 if tiny else 64,
        row_tokens=64 if tiny else 512,
        micro_tokens=256 if tiny else 4096,  # some micro-batches a step
        seed=0,
    )
    trainer = Trainer(config, student, packer, passes(config.goal, BIDIRECTIONAL, 0.0))
    totals, times = [], []
    with trainer._packed(0) as steps:
        for step in steps:
            started = now(device)
            trainer.train_step(step)
            times.append(now(device) - started)
            totals.append(float(trainer.sums[0]))
    losses[kind] = np.diff([0.0, *totals]).tolist()
    row: dict[str, Any] = {
        "losses": [round(loss, 4) for loss in losses[kind]],
        "ms_last_steps": round(1e3 * float(np.median(times[-4:])), 1),
    }
    if trainer.replay is not None:
        slots = trainer.replay._slots.values()
        row |= {"shapes": len(slots), "recorded": sum(slot.graph is not None for slot in slots)}
    row |= {"peak_gb": peak_gb(device)} if device.type == "cuda" else {}
    if "none" not in losses:
        return {"ok": False, "failed": "there are no losses to compare with", **row}
    difference = float(np.abs(np.array(losses[kind]) - losses["none"]).max())
    fell = losses[kind][-1] < losses[kind][0]
    # bfloat16 rounds otherwise in fused kernels; a wrong gradient is off by much more.
    ok = difference <= (0.03 if device.type == "cuda" else 1e-3) and fell
    return {"ok": ok, "difference": float(f"{difference:.3g}"), **row}


def random_model(model: str | None, device: torch.device) -> LoadedModel:
    """Random weights in the shape of a folder's config.json, or a tiny model."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    loaded = build("tiny", range(512), device, dtype)
    if model is None:
        return loaded
    import transformers

    config = transformers.AutoConfig.from_pretrained(model)
    torch.manual_seed(0)
    with device:
        weights: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return replace(loaded, model=weights, handle=install(weights, "sdpa"))


def random_samples(vocabulary: int, n: int) -> EncodedSamples:
    """Samples of 20 to 200 tokens, of few kinds of tokens, so that there is something to learn."""
    rng = np.random.default_rng(0)
    n_total = rng.integers(20, 60 if n < 100 else 200, n)
    start = np.cumsum(n_total) - n_total
    return EncodedSamples(
        ids=rng.integers(0, min(vocabulary, 50), n_total.sum()).astype(np.int32),
        start=start,
        n_prompt=n_total // 2,
        n_total=n_total,
        source=np.arange(n),
    )


if __name__ == "__main__":
    raise SystemExit(main())
