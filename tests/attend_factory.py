"""Run folders of kind "attend" made of random weights, without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.explain import attend_files as files
from bidir_core.explain.attend import mean_interval
from bidir_core.explain.observe import layer_means
from bidir_core.regimes import parse_regime, visibility
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter


def make_attend(
    root: Path,
    regimes: Sequence[str] = ("causal", "bidirectional"),
    *,
    item: str | None = "piqa/3",
    n_prefix: int = 8,
    n_total: int = 12,
    n_layers: int = 4,
    n_heads: int = 3,
    matrices: bool = True,
    pieces: Sequence[str] | None = None,
    written: Sequence[int] | None = None,
    window: int | None = None,
) -> Run:
    """``written``: the layers whose matrices are kept (all of them if None)."""
    random = np.random.default_rng(0)
    task, _, doc_id = (item or "").rpartition("/")
    settings: dict[str, Any] = {"model": "smollm2-135m-instruct", "split": "validation"}
    settings |= {"task": task or None, "doc_id": int(doc_id) if doc_id else None}
    settings |= {"prompt": None if item else "Once upon <b>a</b>"}
    settings |= {"regimes": list(regimes), "regime": regimes[-1]}
    writer = RunWriter.create(
        "lab", settings, root=root, kind="attend", dtype="float32", attention="eager"
    )
    pieces = pieces or [f" w{i}" for i in range(n_total)]
    files.write_tokens(writer.path, list(range(n_total)), pieces, n_prefix)
    shares = []
    for number, regime in enumerate(regimes):
        sums: list[tuple[np.ndarray, ...]] = []
        for layer in range(n_layers):
            is_written = matrices and (written is None or layer in written)
            if sums and written is not None and not is_written:
                sums.append(sums[-1])  # nobody compares it with its matrices
                continue
            allowed = visibility(
                parse_regime(regime), n_prefix, n_total, layer=layer, window=window
            )
            weights = random.random((n_heads, n_total, n_total)) * allowed
            weights /= weights.sum(-1, keepdims=True)
            if is_written:
                files.write_layer(writer.path, number, layer, weights)
            future, past = np.triu(weights, 1).sum(-1), np.tril(weights, -1).sum(-1)
            received = weights[:, 1:n_prefix].mean(1)
            sums.append((weights[..., 0], future, past, 0 * past, received))
        first, future, past, entropy, received = (np.stack(x).astype("f4") for x in zip(*sums))
        shares.append(files.Shares(n_prefix, first, future, past, entropy, received))
    files.write_shares(writer.path, shares)
    norms = [random.random((n_layers, n_total)) + 1 for _ in regimes]
    cosine = random.random((n_layers, n_total)) if len(regimes) > 1 else None
    files.write_drift(writer.path, files.Drift(tuple(norms), cosine))
    sizes: dict[str, Any] = {"n_layers": n_layers, "n_heads": n_heads, "n_tokens": n_total}
    sizes |= {"n_prefix_tokens": n_prefix, "windows": [window] * n_layers}
    observed = [
        {"regime": regime, "continuation_ll": -3.25, "layers": layer_means(regime_shares)}
        for regime, regime_shares in zip(regimes, shares, strict=True)
    ]
    notes = [] if matrices else [f"{n_total} tokens: only shares and drift are stored"]
    facts = {"regimes": list(regimes), "mode": "sequence", "item": item, "matrices": matrices}
    writer.finish(metrics={**facts, **sizes, "observed": observed, "notes": notes})
    return Run(writer.path)


def make_summary(
    root: Path,
    names: Sequence[str] = ("causal", "bidirectional"),
    *,
    tasks: Sequence[str] = ("piqa",),
    n_layers: int = 4,
    n_heads: int = 3,
    n_items: int = 5,
    model: str = "m",
    future: Sequence[float] | None = None,
    config: dict[str, Any] | None = None,
    name: str | None = None,
) -> Run:
    """Averages over ``n_items`` items of each task. ``future``: what each regime sends ahead."""
    random = np.random.default_rng(0)
    settings = {"model": model, "task": ",".join(tasks), "limit": n_items, "regimes": list(names)}
    settings |= config or {}
    writer = RunWriter.create("lab", settings, root=root, name=name, kind="attend", dtype="float32")
    observed, arrays, rows = [], {}, random.random((n_items, n_layers))
    for number, name in enumerate(names):
        values = {m: random.random((n_items, n_layers, n_heads)) for m in files.MEASURES}
        if future is not None:
            spread = 0.01 * (values["future"] - 0.5) / n_items
            values["future"] = np.clip(future[number] + spread, 0, 1)
        arrays |= {f"prefix_{m}_{number}": v.mean(0) for m, v in values.items()}
        by_layer = {m: mean_interval(v.mean(-1)) for m, v in values.items()}
        overall = {m: mean_interval(v.mean((1, 2))[:, None]) for m, v in values.items()}
        entry = {"regime": name, "layers": {"prefix": by_layer}, "overall": {"prefix": overall}}
        observed.append({**entry, "by_task": dict.fromkeys(tasks, overall)})
    files.write_arrays(writer.path / "summary.npz", arrays)
    drift = [
        f"{what}_{number}_{whose}"
        for what in ("norm", "cosine")
        for whose in ("first", "others")
        for number in range(len(names))
        if number or what == "norm"
    ]
    facts = {"regimes": list(names), "mode": "items", "n_items": n_items * len(tasks)}
    facts |= {"n_by_task": dict.fromkeys(tasks, n_items), "n_layers": n_layers, "n_heads": n_heads}
    means = {key: mean_interval(rows) for key in drift}
    writer.finish(metrics=facts | {"observed": observed, "drift": means})
    return Run(writer.path)
