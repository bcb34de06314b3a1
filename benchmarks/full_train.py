"""Training of the full-size model: full and LoRA, ours beside HF Trainer, on the same samples."""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.full_shape import Add, Clock, attempt, build, clear, layer_parameters, peak_gb
from benchmarks.train_speed import time_hf_trainer, time_steps, trainer_of
from bidir_core.models import fused
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.data import prepare_data
from bidir_core.train.packing import EncodedSamples
from bidir_core.train.student import add_lora

HELD = 2e9  # bytes that are in use between two measurements at most


def measure_training(
    method: str, options: Namespace, tokenizer: Any, add: Add, clock: Clock
) -> None:
    """``full``: all weights, float32 masters and moments beside bfloat16 weights. ``lora``: an
    adapter of rank 8 on every linear map of the layers."""
    part = "train" if method == "full" else "lora"
    config = settings(options, method)
    samples = prepare_data(config, tokenizer, 16384).encoded
    attns = [a for a in options.attn if a != "split"]  # splits packed rows of whole items only
    rows: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for number, (attn, compiled) in enumerate(itertools.product(attns, options.compile)):
        config = settings(options, method, attn, compiled)
        title = f"3B {method}, {attn}" + (f", compile {compiled}" if compiled != "none" else "")
        work = partial(ours, options, config, samples, tokenizer, clock)
        rows += _attempt(add, part, title, clock, options.on, work, config.gradient_checkpointing)
        if number == 0:  # before the time is over
            for kind in options.peers:
                work = partial(hf_trainer, options, kind, method, samples, tokenizer, clock)
                title = f"HF {kind.capitalize()} {method}, causal"
                twice = method == "full" and not options.keep_activations
                peers += _attempt(add, part, title, clock, options.on, work, twice)
    if rows and peers:
        best, theirs = (max(row["tokens_per_second"] for row in both) for both in (rows, peers))
        add(part, "best of ours against HF Trainer", ratio=round(best / theirs, 2))


def _attempt(
    add: Add,
    part: str,
    title: str,
    clock: Clock,
    device: torch.device,
    work: Callable[[bool], dict[str, Any]],
    checkpointing: bool,
) -> list[dict[str, Any]]:
    """The row that ``work(gradient checkpointing or not)`` gives; none if it failed."""

    def run() -> dict[str, Any]:
        if device.type == "cuda" and torch.cuda.memory_allocated(device) > HELD:
            torch.compiler.reset()  # what was compiled for the last model may hold on to it
            clear(device)
        computed = "yes" if checkpointing else "no"
        return {
            **work(checkpointing),
            "layers_computed_twice": computed,
            "peak_gb": peak_gb(device),
        }

    row = attempt(add, part, title, clock, device, run)
    return [row] if row is not None else []


def settings(
    options: Namespace, method: str, attn: str = "sdpa", compiled: str = "none"
) -> FinetuneConfig:
    """The fine-tune that is timed."""
    return FinetuneConfig(
        model=options.shape,
        objective="3B",
        method=method,
        data=options.data,
        steps=options.steps,
        batch_samples=options.batch_samples,
        micro_tokens=options.micro_tokens,
        attn=attn,
        compile=compiled,
        # Without it a LoRA step saves a third of its arithmetic, and fits.
        gradient_checkpointing=method == "full"
        and compiled != "reduce-overhead"
        and not options.keep_activations,
        decontaminate=False,
    )


def ours(
    options: Namespace,
    config: FinetuneConfig,
    samples: EncodedSamples,
    tokenizer: Any,
    clock: Clock,
    checkpointing: bool,
) -> dict[str, Any]:
    """Steps of the real loop."""
    config = replace(config, gradient_checkpointing=checkpointing)
    loaded = build(options.shape, tokenizer, options.on, options.dtype, config.attn)
    n_layers = layer_parameters(loaded.model)
    trainer = trainer_of(config, loaded, samples)
    row = time_steps(trainer, options.steps, options.warm_up, clock.left)
    return row | arithmetic(options, config.method, n_layers, loaded.model, row)


def arithmetic(
    options: Namespace, method: str, n_layers: int, model: Any, row: dict[str, Any]
) -> dict[str, Any]:
    """Useful arithmetic a second: padding, recomputed layers and attention are not counted.

    A multiplied weight costs 2 operations forward, 2 for the gradient of what goes in, and 2 for
    its own gradient, which a frozen weight has not. The head counts where a token is predicted.
    """
    n_head = model.get_input_embeddings().weight.numel()
    per_weight = 6 if method == "full" else 4
    share = row.pop("loss_share")
    flops = row["tokens_per_second"] * per_weight * (n_layers + share * n_head)
    return {
        "useful_tflops": round(flops / 1e12, 3),
        "share_of_matmul": round(flops / 1e12 / options.tflops, 3),
    }


def hf_trainer(
    options: Namespace,
    kind: str,
    method: str,
    samples: EncodedSamples,
    tokenizer: Any,
    clock: Clock,
    checkpointing: bool,
) -> dict[str, Any]:
    """The same samples through transformers' Trainer; ``kind``: as :mod:`benchmarks.train_speed` has it.

    Weights are float32 under bfloat16 autocast for a full fine-tune, bfloat16 where they are frozen.
    """
    dtype = torch.float32 if method == "full" else options.dtype
    loaded = build(options.shape, tokenizer, options.on, dtype)
    model = loaded.model
    n_layers = layer_parameters(model)
    if method == "lora":
        model = add_lora(model, rank=8, alpha=16, dropout=0.0)
        model.enable_input_require_grads()
    else:
        model.requires_grad_(True)
    fused.restore(model)
    with loaded.handle.native():
        row = time_hf_trainer(options, model, samples, kind, checkpointing, clock.left)
    return row | arithmetic(options, method, n_layers, loaded.model, row)
