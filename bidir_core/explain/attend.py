"""Observe attention and write it down as a run folder of kind "attend": one text, or many items."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.analyse.stats import student_half_width
from bidir_core.common.errors import UserError
from bidir_core.common.progress import Progress
from bidir_core.data.encoding import EncodedItem, Encoder, Tokens
from bidir_core.data.items import Item, data_fingerprint, hash_doc
from bidir_core.data.tasks import load_items, load_items_by_id, task_names
from bidir_core.evaluate.evaluate import as_recorded, regime_warning
from bidir_core.explain import attend_files as files
from bidir_core.explain import lab_run
from bidir_core.explain.configs import AttendConfig
from bidir_core.explain.observe import observe, observe_one, off_scoring, passage_of
from bidir_core.models import loading
from bidir_core.models.loading import LoadedModel, Preflight
from bidir_core.regimes import Regime, parse_regime
from bidir_core.runs.find import check_same, resumable
from bidir_core.runs.layout import check_new_run
from bidir_core.runs.read import read_arrays
from bidir_core.runs.writer import RunWriter


def attend(config: AttendConfig) -> Path:
    """Observe what the config names and return the run folder.

    Raises UserError on bad input, before anything is written.
    """
    regimes = [parse_regime(regime) for regime in config.regimes]
    check_new_run(config.runs_dir, config.name)
    plan = _preflight(config, regimes)
    encoded, bos_added = _encode(config, plan, read_items(config))
    loaded = loading.load_weights(plan)
    writer = lab_run.begin(
        config,
        "attend",
        loaded,
        [item.item for item in encoded],
        name=config.name,
        settings={"regime": config.regimes[-1]},
        bos_added=bos_added,
        attention="eager",
    )
    _write(writer, config, loaded, regimes, encoded)
    return writer.path


def resume_attend(reference: str | Path, given: Mapping[str, Any]) -> Path:
    """Go on with an unfinished run: averages keep each item that was observed; one text is short
    and starts again. UserError if settings, data or model are not those it was started with."""
    runs_dir = given.get("runs_dir")
    run, config = resumable(reference, "attend", AttendConfig, given, runs_dir=runs_dir)
    if run.state == "done":
        return run.path
    config = as_recorded(config, run)
    regimes = [parse_regime(regime) for regime in config.regimes]
    plan = _preflight(config, regimes)
    encoded, _ = _encode(config, plan, read_items(config))
    fingerprint = data_fingerprint(item.item for item in encoded)
    check_same(run, "data_fingerprint", fingerprint, "the benchmark data")
    loaded = loading.load_weights(plan)
    check_same(run, "model_fingerprint", loaded.fingerprint, "the model")
    _write(RunWriter.resume(run), config, loaded, regimes, encoded)
    return run.path


def _preflight(config: AttendConfig, regimes: Sequence[Regime]) -> Preflight:
    if config.tasks:
        task_names(config.tasks)
    plan = loading.preflight(**loading.asked_by(config, attn="eager", regime=regimes[0]))
    for regime in regimes:
        regime.check_layers(plan.n_layers)
    return plan


def read_items(config: AttendConfig) -> list[Item]:
    """The item, the items, or the prompt as an item with one choice."""
    if config.prompt is not None:
        continuation = config.continuation or ""
        doc = {"prompt": config.prompt, "continuation": continuation}
        return [Item("prompt", 0, hash_doc(doc), 0, (config.prompt,), (continuation,))]
    source: dict[str, Any] = {"split": config.split, "data_source": config.data_source}
    if config.is_summary:
        return load_items(config.tasks, limit=config.limit, **source)
    assert config.task is not None
    assert config.doc_id is not None
    return load_items_by_id(config.task, [config.doc_id], **source)


def _encode(
    config: AttendConfig, plan: Preflight, items: Sequence[Item]
) -> tuple[list[EncodedItem], bool]:
    """Each item as its context and right choice, tokenised as an evaluation does it."""
    prompt_only = config.prompt is not None and not config.continuation
    right = [
        replace(
            item,
            gold=0,
            contexts=(item.context(item.gold),),
            continuations=(" ." if prompt_only else item.continuations[item.gold],),
        )
        for item in items
    ]
    encoder = Encoder.of(plan, bos=config.bos, chat_template=config.chat_template)
    encoded = encoder.encode(right)
    bos_added = encoder.bos_added(encoded)
    if prompt_only:  # only its prefix is used, which is tokenised by itself anyway
        nothing = Tokens(np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64))
        bare = replace(right[0], continuations=("",))
        encoded = [replace(encoded[0], item=bare, continuations=(nothing,))]
    for item in encoded:
        if item.error is not None and not config.is_summary:
            raise UserError(f"{_name(item)} cannot be observed: {item.error}")
        n_tokens = len(item.prefixes[0]) + len(item.continuations[0])
        if item.error is None and n_tokens > plan.max_length:
            raise UserError(
                f"{_name(item)} needs {n_tokens} tokens and the model's window holds "
                f"{plan.max_length}; shorten it (nothing is truncated)"
            )
    return encoded, bos_added


def _name(encoded: EncodedItem) -> str:
    return "the prompt" if encoded.item.task == "prompt" else f"item {encoded.item.item_id}"


def _write(
    writer: RunWriter,
    config: AttendConfig,
    loaded: LoadedModel,
    regimes: Sequence[Regime],
    encoded: Sequence[EncodedItem],
) -> None:
    with lab_run.at_work(writer) as log:
        log.info(
            "%s on %s: %s -> %s", config.what, config.model, ", ".join(config.regimes), writer.id
        )
        warnings = [regime_warning(loaded.training_record, regime) for regime in regimes]
        if all(warnings):
            log.warning("%s", warnings[-1])
        lab_run.probe(writer, loaded, regimes, "so there is nothing to look at")
        started = time.monotonic()
        if config.is_summary:
            metrics = observe_items(writer, loaded, regimes, encoded)
        else:
            metrics = observe_one(writer, loaded, regimes, encoded[0])
        for note in metrics["notes"]:
            log.info("%s", note)
        # The time of items that a stopped run had observed before is recorded with them.
        cost = {"seconds": metrics.pop("seconds")} if config.is_summary else {}
        metrics = {"regimes": list(config.regimes), **metrics}
        lab_run.end(writer, loaded, metrics, started=started, **cost)


# Many items: averages with intervals, small enough to keep.

_Item = dict[str, np.ndarray]


def observe_items(
    writer: RunWriter,
    loaded: LoadedModel,
    regimes: Sequence[Regime],
    encoded: Sequence[EncodedItem],
) -> dict[str, Any]:
    """Observe every item under each regime; writes ``summary.npz`` and returns the metrics.

    ``observed[i].layers.<part>.<measure>`` hold, per layer, the mean over items of each item's
    mean over heads and tokens, with a 95 % Student t interval over items; ``overall`` the same
    averaged over layers first; ``minus_first`` both for the paired difference from the first
    regime. ``prefix.top`` is the share that each head's most attended token gets: where it stays
    high while ``first`` falls, the sink has moved. Each item is on disk once it was observed, so
    that a resumed run goes on behind it.
    """
    usable = [item for item in encoded if item.error is None]
    if not usable:
        raise UserError(f"none of the {len(encoded)} items has tokens to observe")
    folder = writer.path / "parts"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05d}.npz" for number in range(len(usable))]
    done = sum(path.exists() for path in paths)
    progress = Progress(len(usable), done=done, title="attend", report=writer.heartbeat)
    try:
        for path, item in zip(paths, usable, strict=True):
            if not path.exists():
                measured = _observe_item(loaded, regimes, item, check=path == paths[0])
                files.write_arrays(path, measured)
                progress.advance(1)
    finally:  # also when stopped, so that the status counts every item that was written
        progress.close()
    items = [read_arrays(path) for path in paths]
    off = items[0].pop("off_scoring", np.full(len(regimes), np.nan))
    seconds = float(sum(item.pop("seconds") for item in items))
    by_key = {key: np.stack([item[key] for item in items]) for key in items[0]}
    heads = {key: _mean_known(rows) for key, rows in by_key.items() if rows.ndim == 3}
    files.write_arrays(
        writer.path / "summary.npz", {name: mean.astype(np.float32) for name, mean in heads.items()}
    )
    shutil.rmtree(folder)
    tasks = [item.item.task for item in usable]
    each = seconds / len(usable)
    note = f"averages over {len(usable)} items, {each:.2f} s each; no matrices are stored"
    return {
        "mode": "items",
        "n_items": len(usable),
        "n_errors": len(encoded) - len(usable),
        "n_by_task": {task: tasks.count(task) for task in dict.fromkeys(tasks)},
        **_averages(regimes, tasks, by_key, off),
        "seconds": round(seconds, 3),
        "seconds_per_item": round(each, 3),
        "notes": [note],
    }


def _observe_item(
    loaded: LoadedModel, regimes: Sequence[Regime], encoded: EncodedItem, *, check: bool
) -> _Item:
    """``<part>_<measure>_<regime>`` ``[layer, head]``, ``drift_<what>_<regime>_<whose>`` ``[layer]``,
    ``seconds``; with ``check`` also how far it is from the scoring path, by regime."""
    started = time.monotonic()
    passage = passage_of(encoded)
    observations = [observe(loaded, passage, regime, keep_hidden=True) for regime in regimes]
    measured: _Item = {}
    for number, observation in enumerate(observations):
        for part in files.PARTS:
            for name, value in observation.shares.mean(part).items():
                measured[f"{part}_{name}_{number}"] = value
        measured[f"prefix_top_{number}"] = observation.shares.received.max(-1).astype(np.float64)
        pair = [observations[0].hidden, observation.hidden] if number else [observation.hidden]
        for name, rows in drift_rows(files.drift_between(pair), passage.n_prefix).items():
            what, _, whose = name.partition("_")
            measured[f"drift_{what}_{number}_{whose}"] = rows
    measured["seconds"] = np.array(time.monotonic() - started)
    if check:
        off = [
            off_scoring(loaded, regime, encoded, observation.token_ll)
            for regime, observation in zip(regimes, observations, strict=True)
        ]
        measured["off_scoring"] = np.array([np.nan if value is None else value for value in off])
    return measured


def _averages(
    regimes: Sequence[Regime], tasks: Sequence[str], by_key: _Item, off: np.ndarray
) -> dict[str, Any]:
    """``by_key``: as :func:`_observe_item`, all items stacked in front; ``tasks``: of each item."""
    _, n_layers, n_heads = by_key["prefix_first_0"].shape
    observed: list[dict[str, Any]] = []
    by_regime: list[_Item] = []
    for number, regime in enumerate(regimes):
        suffix = f"_{number}"
        by_layer = {  # [item, layer]
            key.removesuffix(suffix): rows.mean(-1)
            for key, rows in by_key.items()
            if rows.ndim == 3 and key.endswith(suffix)
        }
        by_regime.append(by_layer)
        by_task = {
            task: _overall({k: v[np.array(tasks) == task] for k, v in by_layer.items()})["prefix"]
            for task in dict.fromkeys(tasks)
        }
        entry = {
            "regime": str(regime),
            "off_scoring_nats": None if np.isnan(off[number]) else float(off[number]),
            "layers": _intervals(by_layer),
            "overall": _overall(by_layer),
            "by_task": by_task,
        }
        if number:
            delta = {key: by_layer[key] - by_regime[0][key] for key in by_layer}
            entry["minus_first"] = {"layers": _intervals(delta), "overall": _overall(delta)}
        observed.append(entry)
    drift = {
        key.removeprefix("drift_"): mean_interval(rows, log="cosine" not in key)
        for key, rows in by_key.items()
        if key.startswith("drift_")
    }
    return {"n_layers": n_layers, "n_heads": n_heads, "observed": observed, "drift": drift}


def drift_rows(drift: files.Drift, n_prefix: int) -> dict[str, np.ndarray]:
    """Per layer, of the last regime: the first token's norm, cosine with the first regime and
    norm ratio to it, and the mean of the other prefix tokens'."""
    rows = {}
    values = {"norm": drift.norms[-1]}
    if drift.cosine is not None and drift.ratio is not None:
        values |= {"cosine": drift.cosine, "ratio": drift.ratio}
    for name, value in values.items():
        rows[f"{name}_first"] = value[:, 0]
        others = value[:, 1:n_prefix]
        rows[f"{name}_others"] = others.mean(-1) if n_prefix > 1 else np.full(len(value), np.nan)
    return rows


def mean_interval(values: np.ndarray, *, log: bool = False) -> dict[str, Any]:
    """Mean over items of ``[item, layer]``, with Student's t interval; items that lack it (NaN)
    are left out. None where fewer than one (mean) or two (interval) are left. ``log``: of the
    logarithms, for lengths that differ by powers of ten; the mean is then the geometric one.
    """
    kept = values[~np.isnan(values).any(-1)]
    n = len(kept)
    if n == 0:
        return {"n": 0, "mean": None, "low": None, "high": None}
    inverse = np.exp if log else np.asarray
    kept = np.log(np.maximum(kept, 1e-30)) if log else kept
    mean = kept.mean(0)
    if n == 1:
        return {"n": 1, "mean": _list(inverse(mean)), "low": None, "high": None}
    half = student_half_width(kept)
    low, high = inverse(mean - half), inverse(mean + half)
    return {"n": n, "mean": _list(inverse(mean)), "low": _list(low), "high": _list(high)}


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over items of ``[item, layer, head]`` without those that lack the part (NaN)."""
    kept = values[~np.isnan(values).any((1, 2))]
    return kept.mean(0) if len(kept) else values[0]


def _overall(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """As :func:`_intervals`, averaged over layers: one number each."""
    return _intervals({key: rows.mean(-1, keepdims=True) for key, rows in values.items()})


def _intervals(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """``{part: {measure: mean and interval by layer}}`` from ``part_measure`` keys."""
    by_part: dict[str, Any] = {part: {} for part in files.PARTS}
    for key, rows in values.items():
        part, _, name = key.partition("_")
        by_part[part][name] = mean_interval(rows)
    return by_part


def _list(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
