"""Evaluation and long prefills of the full-size model: ours, and what they are measured against."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
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
    clear,
    layer_parameters,
    median_seconds,
    peak_gb,
    timed,
    trouble,
)
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate, read_items
from bidir_core.models import fused
from bidir_core.models.attention import Implementation
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime
from bidir_core.runs.run import Run

EVALUATED = ("causal", "bidirectional")


def measure_eval(options: Namespace, tokenizer: Any, add: Add, clock: Clock) -> None:
    """The evaluation command's work after the model is loaded: probe, scores and run folder.

    lm-eval's batch sizes are tried once each; then every kind of ours and lm-eval at its best size
    take turns, ``repeats`` times behind a first round that is not counted.
    """
    loaded = build(options.shape, tokenizer, options.on, options.dtype)
    with fused.plain(loaded.model):
        peer = best_peer(options, attending(loaded, "sdpa"), add, clock)
    ours: dict[tuple[Implementation, str], list[dict[str, Any]]] = {
        (attn, regime): [] for attn in options.attn for regime in EVALUATED
    }
    theirs: list[dict[str, float]] = []
    for number in range(1 + options.repeats):
        if not clock.left() and number > 1:
            break
        for (attn, regime), rows in list(ours.items()):
            try:
                rows.append(evaluation(options, attending(loaded, attn), regime))
            except Exception as error:
                add("eval", f"{attn}, {regime}", **trouble(error, options.on))
                del ours[attn, regime]
        if peer is not None and number > 0:
            with fused.plain(loaded.model), attending(loaded, "sdpa").handle.native():
                theirs.append(peer())
    for (attn, regime), rows in ours.items():
        add("eval", f"{attn}, {regime}", **medians(rows[1:] or rows), repeats=len(rows[1:]))
    if theirs:
        add("eval", "lm-eval at its best batch size", **medians(theirs), repeats=len(theirs))
        best = medians(theirs)
        for (attn, regime), rows in ours.items():
            row = medians(rows[1:] or rows)
            add(
                "eval",
                f"lm-eval against {attn}, {regime}",
                its_tokenising_in=round(best["seconds"] / row["after_load_seconds"], 2),
                its_tokenising_out=round(best["scoring_seconds"] / row["after_load_seconds"], 2),
                tokenising_in_for_both=round(best["seconds"] / row["seconds"], 2),
            )


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each number's median over rows."""
    return {
        name: round(statistics.median(row[name] for row in rows), 3)
        for name, value in rows[0].items()
        if isinstance(value, int | float)
    }


def evaluation(options: Namespace, loaded: LoadedModel, regime: str) -> dict[str, Any]:
    """Seconds of the whole of ``eval``, items read and run folder written, but for loading."""
    clear(loaded.device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = EvalConfig(
            model=loaded.name,
            tasks=options.tasks,
            limit=options.limit,
            regime=regime,
            batch_tokens=options.batch_tokens,
            compact=True,
            runs_dir=folder,
            name="run",
            device=str(loaded.device),
        )
        run = Run(Path(folder) / "run")
        work = partial(evaluate, config, loaded=loaded, folder=run.path)
        seconds = timed(work, loaded.device)
        cost, probe = (run.metrics or {})["cost"], run.probe or {}
        started, finished = run.status["started"], run.status["finished"]
    flops = 2.0 * layer_parameters(loaded.model) * cost["computed_tokens"]
    return {
        "seconds": seconds,
        # The command reads, tokenises and plans before it loads the model and makes the run folder.
        "after_load_seconds": finished - started,
        "probe_seconds": probe["seconds"],
        "scoring_seconds": cost["seconds"],
        "computed_tokens": cost["computed_tokens"],
        "layers_floor_seconds": flops / (options.tflops * 1e12),
        "peak_gb": peak_gb(loaded.device),
    }


# --- the peer -------------------------------------------------------------------------------


def best_peer(
    options: Namespace, loaded: LoadedModel, add: Add, clock: Clock
) -> Callable[[], dict[str, float]] | None:
    """lm-eval on the same items at its best batch size, to be timed; None where it cannot run."""
    if importlib.util.find_spec("lm_eval") is None:
        add("eval", "lm-eval", skipped="it is not installed")
        return None
    from benchmarks.lm_eval_peer import LmEvalPeer

    items = read_items(EvalConfig(model="x", tasks=options.tasks, limit=options.limit))
    peer = LmEvalPeer(
        loaded.model, dtype=loaded.dtype, device=str(loaded.device), tokenizer=loaded.tokenizer
    )

    def score(size: int) -> dict[str, Any]:
        started = time.perf_counter()
        requests = peer.tokenise(items)
        tokenised = time.perf_counter() - started
        with loaded.handle.native():
            scoring = timed(partial(peer.score_requests, items, requests, size), loaded.device)
        peak = peak_gb(loaded.device)
        return medians(
            [{"seconds": tokenised + scoring, "scoring_seconds": scoring, "peak_gb": peak}]
        )

    seconds: dict[int, float] = {}
    for size in options.peer_batch_sizes:
        if seconds and not clock.left():
            break
        title = f"lm-eval, batch {size}"
        row = attempt(add, "eval", title, clock, loaded.device, partial(score, size))
        if row is not None:
            seconds[size] = row["seconds"]
    return partial(score, min(seconds, key=seconds.__getitem__)) if seconds else None


# --- a long prefix --------------------------------------------------------------------------


@torch.inference_mode()
def measure_prefill(options: Namespace, tokenizer: Any, add: Add, clock: Clock) -> None:
    """One prefix of ``prefill_tokens`` through the layers, and the model's own plain kernels."""
    loaded = build(options.shape, tokenizer, options.on, options.dtype)
    n, device = options.prefill_tokens, loaded.device
    ids = torch.randint(0, 256, (1, n), generator=torch.Generator().manual_seed(0)).to(device)
    layout = Layout.pack([(n, n)]).to(device)

    def layers() -> torch.Tensor:
        return loaded.handle.decoder(
            input_ids=ids, position_ids=layout.position, use_cache=False
        ).last_hidden_state

    def measured(title: str, run: Callable[[], Any], plain: float | None = None) -> float | None:
        def work() -> dict[str, Any]:
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            seconds = median_seconds(run, device, clock)
            extra = peak_gb(device)
            if extra is not None:
                extra = round(extra - before / 1e9, 2)
            ratio = None if plain is None else round(seconds / plain, 3)
            return {"ms": round(1e3 * seconds, 2), "times_plain": ratio, "more_gb": extra}

        row = attempt(add, "prefill", title, clock, device, work)
        return None if row is None else row["ms"] / 1e3

    with loaded.handle.native(), full_attention(loaded):
        plain = measured("plain full attention, the model's own kernel", layers)
    with loaded.handle.native():
        measured("plain causal, the model's own kernel", layers, plain)
    for attn in options.attn:
        loaded = attending(loaded, attn)
        for regime in (BIDIRECTIONAL, CAUSAL):

            def with_regime(loaded: LoadedModel = loaded, regime: Regime = regime) -> torch.Tensor:
                """One pass, the mask's cost included."""
                with loaded.handle.use(regime, layout):
                    return layers()

            measured(f"{attn}, {regime}", with_regime, plain)


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
