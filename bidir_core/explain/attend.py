"""Observe attention and write it down as a run folder of kind "attend": one text, or many items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem, Encoder, Tokens
from bidir_core.data.items import Item, data_fingerprint, hash_doc
from bidir_core.data.tasks import load_items, load_items_by_id, task_names
from bidir_core.evaluate.evaluate import as_recorded, regime_warning
from bidir_core.explain import lab_run
from bidir_core.explain.attend_config import AttendConfig
from bidir_core.explain.observe import observe_one
from bidir_core.explain.observe_many import observe_items
from bidir_core.models import loading
from bidir_core.models.loading import LoadedModel, Preflight
from bidir_core.regimes import Regime, parse_regime
from bidir_core.runs.find import check_same, resumable
from bidir_core.runs.layout import check_new_run
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
    assert config.task is not None
    source: dict[str, Any] = {"split": config.split, "data_source": config.data_source}
    if config.limit is not None:
        source |= {"limit": config.limit, "sample": config.sample, "seed": config.seed}
        return load_items(config.tasks, **source)
    ids = [config.doc_id] if config.doc_id is not None else [int(i) for i in config.items]
    items = load_items_by_id(config.task, ids, **source)
    if config.choice is not None and not 0 <= config.choice < items[0].n_choices:
        raise UserError(
            f"--choice {config.choice}: {items[0].item_id} has choices 0 to "
            f"{items[0].n_choices - 1}"
        )
    return items


def _encode(
    config: AttendConfig, plan: Preflight, items: Sequence[Item]
) -> tuple[list[EncodedItem], bool]:
    """Each item as one context and one continuation, tokenised as an evaluation does it."""
    encoder = Encoder.of(plan, bos=config.bos, chat_template=config.chat_template)
    prompt_only = config.prompt is not None and not config.continuation
    if prompt_only:  # only its prefix is used, which is tokenised by itself anyway
        items = [replace(items[0], continuations=(" .",))]
    encoded = encoder.encode(items)
    bos_added = encoder.bos_added(encoded)
    chosen = []
    for item in encoded:
        if item.error is not None and not config.is_summary:
            raise UserError(f"{_name(item)} cannot be observed: {item.error}")
        chosen.append(_one_choice(item, config.choice, prompt_only))
        n_tokens = len(chosen[-1].prefixes[0]) + len(chosen[-1].continuations[0])
        if item.error is None and n_tokens > plan.max_length:
            raise UserError(
                f"{_name(item)} needs {n_tokens} tokens and the model's window holds "
                f"{plan.max_length}; shorten it (nothing is truncated)"
            )
    return chosen, bos_added


def _one_choice(encoded: EncodedItem, choice: int | None, prompt_only: bool) -> EncodedItem:
    choice = encoded.item.gold if choice is None else choice
    item = replace(
        encoded.item,
        gold=0,
        contexts=(encoded.item.context(choice),),
        continuations=("",) if prompt_only else (encoded.item.continuations[choice],),
    )
    context = encoded.contexts[choice] if len(encoded.contexts) > 1 else encoded.contexts[0]
    no_tokens = Tokens(np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64))
    continuation = no_tokens if prompt_only else encoded.continuations[choice]
    return EncodedItem(item, (context,), (encoded.prefix(choice),), (continuation,), encoded.error)


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
