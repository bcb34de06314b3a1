"""Evaluation and long prefills of the full-size model: ours, and what they are measured against."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_shape import (
    Add,
    Clock,
    attempt,
    attending,
    build,
    layer_parameters,
    median_seconds,
    peak_gb,
    timed,
)
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate, read_items
from bidir_core.models import fused
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime
from bidir_core.runs.run import Run

EVALUATED = ("causal", "bidirectional")


def measure_eval(options: Namespace, tokenizer: Any, add: Add, clock: Clock) -> None:
    """The evaluation command's work after the model is loaded: probe, scores and run folder.

    sdpa first, then the peer, then the others, until the part's time is over.
    """
    loaded = build(options.shape, tokenizer, options.on, options.dtype)
    kinds = sorted(options.attn, key=lambda attn: attn != "sdpa")
    best: dict[str, float] = {}
    peer: float | None = None
    for number, attn in enumerate(kinds):
        for regime in EVALUATED:
            work = partial(evaluation, options, attending(loaded, attn), regime)
            row = attempt(add, "eval", f"{attn}, {regime}", clock, options.on, work)
            if row is not None:
                best[regime] = min(best.get(regime, row["seconds"]), row["seconds"])
        if number == 0:
            with fused.plain(loaded.model):
                peer = best_peer(options, attending(loaded, "sdpa"), add, clock)
    if peer is not None:
        for regime, seconds in best.items():
            add("eval", f"peer against best, {regime}", ratio=round(peer / seconds, 2))


def evaluation(options: Namespace, loaded: LoadedModel, regime: str) -> dict[str, Any]:
    """Seconds of the whole of ``eval``, items read and run folder written, but for loading."""
    seconds, after_load = [], []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number in range(1 + options.repeats):
            config = EvalConfig(
                model=loaded.name,
                tasks=options.tasks,
                limit=options.limit,
                regime=regime,
                batch_tokens=options.batch_tokens,
                compact=True,
                runs_dir=folder,
                name=str(number),
                device=str(loaded.device),
            )
            work = partial(evaluate, config, loaded=loaded, folder=Path(folder) / f"run{number}")
            seconds.append(timed(work, loaded.device))
            run = Run(Path(folder) / f"run{number}")
            after_load.append(run.status["finished"] - run.status["started"])
        cost, probe = (run.metrics or {})["cost"], run.probe or {}
    again = slice(1 if len(seconds) > 1 else 0, None)
    flops = 2.0 * layer_parameters(loaded.model) * cost["computed_tokens"]
    return {
        "seconds": round(statistics.median(seconds[again]), 3),
        # The command reads and tokenises items before it loads the model and makes the run folder.
        "after_load_seconds": round(statistics.median(after_load[again]), 3),
        "first_seconds": round(seconds[0], 3),
        "repeats": len(seconds) - 1,
        "probe_seconds": probe["seconds"],
        "scoring_seconds": cost["seconds"],
        "computed_tokens": cost["computed_tokens"],
        "layers_floor_seconds": round(flops / (options.tflops * 1e12), 3),
        "peak_gb": peak_gb(loaded.device),
    }


# --- the peer -------------------------------------------------------------------------------


def best_peer(options: Namespace, loaded: LoadedModel, add: Add, clock: Clock) -> float | None:
    """Seconds of lm-eval on the same items at its best batch size; None without a number."""
    if importlib.util.find_spec("lm_eval") is None:
        add("eval", "lm-eval", skipped="it is not installed")
        return None
    from benchmarks.lm_eval_peer import LmEvalPeer

    items = read_items(EvalConfig(model="x", tasks=options.tasks, limit=options.limit))
    peer = LmEvalPeer(
        loaded.model, dtype=loaded.dtype, device=str(loaded.device), tokenizer=loaded.tokenizer
    )

    def score(size: int) -> dict[str, Any]:
        with loaded.handle.native():
            seconds = timed(partial(peer.score, items, size), loaded.device)
        return {"seconds": round(seconds, 3), "peak_gb": peak_gb(loaded.device)}

    best = None
    for size in options.peer_batch_sizes:
        if best is not None and not clock.left():
            break
        what = f"lm-eval, batch {size}"
        row = attempt(add, "eval", what, clock, loaded.device, partial(score, size))
        if row is not None:
            best = min(row["seconds"], best or row["seconds"])
    return best


# --- a long prefix --------------------------------------------------------------------------


@torch.no_grad()  # not inference mode: flex is compiled
def measure_prefill(options: Namespace, tokenizer: Any, add: Add, clock: Clock) -> None:
    """One prefix of ``prefill_tokens`` through the layers, and the model's own plain kernels."""
    loaded = build(options.shape, tokenizer, options.on, options.dtype)
    n, on = options.prefill_tokens, loaded.device
    ids = torch.randint(0, 256, (1, n), generator=torch.Generator().manual_seed(0)).to(on)
    layout = Layout.pack([(n, n)]).to(on)

    def layers() -> torch.Tensor:
        return loaded.handle.decoder(
            input_ids=ids, position_ids=layout.position, use_cache=False
        ).last_hidden_state

    def measured(what: str, run: Callable[[], Any], plain: float | None = None) -> float | None:
        def work() -> dict[str, Any]:
            before = torch.cuda.memory_allocated(on) if on.type == "cuda" else 0
            seconds = median_seconds(run, on, clock)
            more = None if on.type != "cuda" else round((peak_gb(on) or 0) - before / 1e9, 2)
            ratio = None if plain is None else round(seconds / plain, 3)
            return {"ms": round(1e3 * seconds, 2), "times_plain": ratio, "more_gb": more}

        row = attempt(add, "prefill", what, clock, on, work)
        return None if row is None else row["ms"] / 1e3

    with loaded.handle.native(), full_attention(loaded):
        plain = measured("plain full attention, the model's own kernel", layers)
    with loaded.handle.native():
        measured("plain causal, the model's own kernel", layers, plain)
    for attn in options.attn:
        loaded = attending(loaded, attn)
        for regime in (BIDIRECTIONAL, CAUSAL):

            def under(loaded: LoadedModel = loaded, regime: Regime = regime) -> torch.Tensor:
                """Whatever the mask costs included."""
                with loaded.handle.use(regime, layout):
                    return layers()

            measured(f"{attn}, {regime}", under, plain)


@contextmanager
def full_attention(loaded: LoadedModel) -> Iterator[None]:
    """Make the model's own attention bidirectional, by the switch that its sdpa call reads."""
    modules = [m for m in loaded.handle.decoder.modules() if hasattr(m, "is_causal")]
    for module in modules:
        module.is_causal = False
    try:
        yield
    finally:
        for module in modules:
            module.is_causal = True
