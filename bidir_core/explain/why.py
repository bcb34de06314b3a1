"""Why did this item flip? Put parts of its attention back to causal and see when the answer returns.

Three questions of one item, under a regime that changed its answer:

- layers: one layer causal again; layers 0 to k; layers k to the last.
- prompt tokens: one token causal again, so that it alone sees only what precedes it.
- lambda: how strong the look-ahead must be for the answer to change.

What turns the answer back is *sufficient* for that on this item, with all the rest left open. It is
no statement about other items, nor about what the model needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.common.settings import from_json
from bidir_core.data.encoding import EncodedItem
from bidir_core.data.items import name_of
from bidir_core.data.tasks import load_items_by_id
from bidir_core.evaluate import evaluate
from bidir_core.evaluate.config import EvalConfig
from bidir_core.explain import lab_run
from bidir_core.explain.configs import RESULT, WhyConfig
from bidir_core.explain.variants import Rule, VariantScorer
from bidir_core.explain.why_search import Measure, investigate, short
from bidir_core.models import loading
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL, Regime, parse_regime
from bidir_core.runs.dials import STRENGTHS, read_dials, write_dials
from bidir_core.runs.find import find_run
from bidir_core.runs.layout import check_new_run, runs_roots
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter

# What a run decides where the command line does not.
_READING = ("model", "revision", "checkpoint", "split", "bos", "chat_template", "data_source")


def resolve(config: WhyConfig) -> tuple[WhyConfig, EvalConfig, Run | None]:
    """The config with nothing left open, how the item's run reads items, and that run.

    Raises UserError if the run is not there, is no evaluation, or never scored this item.
    """
    run = None
    if config.as_run is None:
        if config.model is None:
            raise UserError(
                "--model is missing; name one, for example smollm2-135m-instruct, or --as-run RUN"
            )
        reading = EvalConfig(model=config.model, tasks=(config.task,))
    else:
        roots = [config.runs_dir] if config.runs_dir else []
        run = find_run(config.as_run, roots=[*roots, *runs_roots()])
        if run.config.get("kind", "eval") != "eval" or run.is_reference or run.error:
            raise UserError(f"the run '{run.id}' holds no scored items; name an evaluation's run")
        reading = from_json(EvalConfig, run.settings)
        if reading.patch is not None:
            raise UserError(
                f"the run '{run.id}' has an edit beside its regime, which no regime says; name a "
                "run without"
            )
        reading = replace(reading, tasks=(_task_of(config, reading, run),))
    named = {
        name: getattr(config, name)
        for name in _READING
        if getattr(config, name) != getattr(WhyConfig, name)
    }
    regime = config.regime or (reading.regime if run is not None else "bidirectional")
    if not parse_regime(regime).bidirectional:
        source = f"the run '{run.id}' read causally" if config.regime is None and run else regime
        raise UserError(
            f"{source}: there is nothing to explain; give a bidirectional --regime or --as-run such a run"
        )
    reading = replace(
        reading,
        **named,
        regime=regime,
        dtype=config.dtype,
        device=config.device,
        attn=config.attn,
        limit=None,
        sample="first",
        fold="all",
        batch_tokens=None,
    )
    settings = {name: getattr(reading, name) for name in (*_READING, "regime")}
    return replace(config, **settings, task=reading.tasks[0]), reading, run


def _task_of(config: WhyConfig, reading: EvalConfig, run: Run) -> str:
    """The run's own name or path of the task; its records must hold the item."""
    task_name = name_of(config.task)
    tasks = [task for task in reading.tasks if name_of(task) == task_name]
    if not tasks:
        raise UserError(
            f"the run '{run.id}' was not made on '{task_name}'; its tasks are {', '.join(run.tasks)}"
        )
    if run.item(task_name, config.doc_id) is None:
        raise UserError(
            f"the run '{run.id}' has no item {task_name}/{config.doc_id}; name one it scored"
        )
    return tasks[0]


# What a restoration found, in sentences. Works on the stored result; needs no model.


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The finding: what happened, then what turns the answer back, in layers, tokens, strength."""
    before, after, gold = result["causal"]["choice"], result["opened"]["choice"], result["gold"]
    mark = {choice: " (right)" if choice == gold else " (wrong)" for choice in (before, after)}
    regime = result["regime"]
    if before == after:
        lead = result["causal"]["lead"], result["opened"]["lead"]
        return [
            f"Under {regime} the answer stays choice {before}{mark[before]}: nothing flips.",
            f"Its lead over the best other choice goes from {lead[0]:+.2f} to {lead[1]:+.2f} nats.",
        ]
    texts = [f"Causal gives choice {before}{mark[before]}, {regime} choice {after}{mark[after]}."]
    texts += [_layers(result), _tokens(result), _strength(result)]
    recorded = result.get("recorded")
    if recorded and recorded["choice"] != after:
        texts.append(
            f"The run {recorded['run']} recorded choice {recorded['choice']} where this machine "
            f"computes {after}: the item is a close call, and number formats differ."
        )
    return texts


def turned(points: Sequence[Mapping[str, Any]], choice: int) -> list[int]:
    """Which of the points give ``choice``."""
    return [i for i, point in enumerate(points) if point["choice"] == choice]


def ranges(numbers: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _layers(result: Mapping[str, Any]) -> str:
    before, layers, n = result["causal"]["choice"], result["layers"], result["n_layers"]
    single = turned(layers["single"], before)
    first = next(iter(turned(layers["from_first"], before)), n - 1)
    last = n - 1 - next(iter(turned(layers["from_last"][::-1], before)), n - 1)
    if len(single) == 1:
        text = f"Making layer {single[0]} causal again alone turns the answer back."
    elif len(single) == n:
        text = "Making any single layer causal again turns the answer back."
    elif single:
        text = f"Making any one of layers {ranges(single)} causal again turns the answer back."
    else:
        text = "No single layer made causal again turns the answer back."
    if first == n - 1 and last == 0:
        return f"{text} Growing from either end, it takes all {n}."
    return (
        f"{text} Growing from the first layer, {_range(0, first)} suffice; from the last, "
        f"{_range(last, n - 1)}."
    )


def _range(first: int, last: int) -> str:
    return f"layers {first}-{last}" if first < last else f"layer {first}"


def _tokens(result: Mapping[str, Any]) -> str:
    before, tokens = result["causal"]["choice"], result["tokens"]
    turning = [token for token in tokens if token["choice"] == before]
    tried = sum(token["looks_ahead"] for token in tokens)
    wide = any(token["first"] != token["last"] for token in tokens)
    unit = "token or span of tokens" if wide else "prompt token"
    if not turning:
        return f"No single {unit} made causal again turns it back ({tried} tried)."
    if len(turning) <= 3:
        names = [_token(result, token) for token in turning]
        named = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
        more = "and no other" if len(turning) == 1 else "each alone"
        return f"Of {tried} {unit}s, {named} made causal again turns it back, {more}."
    example = _token(result, turning[0])
    return f"Of {tried} {unit}s, {len(turning)} each turn it back alone, {example} among them."


def _token(result: Mapping[str, Any], token: Mapping[str, Any]) -> str:
    first, last = token["first"], token["last"]
    where = f"token {first}" if first == last else f"tokens {first}-{last}"
    text = "".join(result["pieces"][first : last + 1]).strip()
    if not text:
        return where
    shown = text if len(text) <= 24 else text[:23] + "…"
    return f"{where} (“{shown}”)"


def _strength(result: Mapping[str, Any]) -> str:
    strengths = result["lambda"]
    if strengths["high"] is None:
        return "At every lambda tried the answer stays."
    if not strengths["low"]:
        text = f"Even lambda={strengths['high']:g} flips it"
    else:
        text = f"It flips between lambda={strengths['low']:.3g} and {strengths['high']:.3g}"
    if strengths["returns"]:
        text += ", and back again above that, so there is no single threshold"
    return f"{text}."


def explain(config: WhyConfig) -> Path:
    """Explain the item that the config names and return the run folder.

    Raises UserError on bad input, before anything is written.
    """
    check_new_run(config.runs_dir, config.name)
    config, reading, run = resolve(config)
    regime = parse_regime(reading.regime)
    plan = evaluate.preflight(reading, regime)
    encoded, bos_added = read_item(config, reading, plan, run)
    loaded = loading.load_weights(plan)
    writer = lab_run.begin(
        config,
        "why",
        loaded,
        [encoded.item],
        name=config.folder_name,
        settings={"tasks": [config.task]},  # readers expect them beside the settings
        doc_hash=encoded.item.doc_hash,
        bos_added=bos_added,
    )
    _write(writer, config, loaded, regime, encoded, run)
    return writer.path


def read_item(
    config: WhyConfig, reading: Any, plan: Any, run: Run | None
) -> tuple[EncodedItem, bool]:
    """The item as the run read it, tokenised; checked against the run's own record."""
    if reading.num_fewshot or reading.context != "full":
        items = [item for item in evaluate.read_items(reading) if item.doc_id == config.doc_id]
    else:
        items = load_items_by_id(
            config.task,
            [config.doc_id],
            split=reading.split,
            repeat_prompt=reading.repeat_prompt,
            data_source=reading.data_source,
        )
    if not items:
        raise UserError(f"there is no item {name_of(config.task)}/{config.doc_id}")
    chat_date = (evaluate.chat_date_of(run),) if run is not None else ()
    encoded, bos_added = evaluate.encode(reading, plan, items, *chat_date)
    if encoded[0].error is not None:
        raise UserError(f"item {items[0].item_id} cannot be scored: {encoded[0].error}")
    if run is not None:
        record = run.item(items[0].task, config.doc_id)
        if record is not None and record["doc_hash"] != items[0].doc_hash:
            raise UserError(
                f"item {items[0].item_id} is not the one that the run '{run.id}' scored: the data "
                "changed since"
            )
    return encoded[0], bos_added


def _write(
    writer: RunWriter,
    config: WhyConfig,
    loaded: LoadedModel,
    regime: Regime,
    encoded: EncodedItem,
    run: Run | None,
) -> None:
    with lab_run.at_work(writer) as log:
        log.info(
            "why %s on %s under %s -> %s", encoded.item.item_id, config.model, regime, writer.id
        )
        started = time.monotonic()
        result, computed = investigate(loaded, encoded, regime, config.metric, writer.heartbeat)
        result = {
            "model": config.model,
            "checkpoint": config.checkpoint,
            **result,
            "recorded": _recorded(run, encoded, config.metric),
        }
        result["sentences"] = sentences(result)
        for sentence in result["sentences"]:
            log.info("%s", sentence)
        write_json(writer.path / RESULT, {"schema": 1, **result})
        metrics = {"n_items": 1, "tasks": {}, "flips": result["flips"]}
        lab_run.end(writer, loaded, metrics, started=started, computed_tokens=computed)


def _recorded(run: Run | None, encoded: EncodedItem, metric: str) -> dict[str, Any] | None:
    """What the run had recorded for this item, in other words what is to be explained."""
    record = run.item(encoded.item.task, encoded.item.doc_id) if run is not None else None
    if run is None or record is None or record["ll"] is None:
        return None
    measure = Measure(encoded, metric)
    return {"run": run.id, "choice": measure.choice(record["ll"]), "ll": short(record["ll"])}


# One item's answers at every setting of three dials, put into a file: a page then needs no model.


def export(config: WhyConfig, path: Path | str) -> dict[str, Any]:
    """Score the item at every setting and put it into the file. UserError, before anything is
    written, on bad input and for an item that has a context for each choice."""
    records = read_dials(path)
    config, reading, run = resolve(config)
    plan = evaluate.preflight(reading, parse_regime(reading.regime))
    encoded, _ = read_item(config, reading, plan, run)
    item = encoded.item
    if len(item.contexts) > 1:
        raise UserError(
            f"item {item.item_id} has a context for each choice; name one with a single one"
        )
    loaded = loading.load_weights(plan)
    record = {
        "model": config.model,
        "item": item.item_id,
        "run": run.id if run is not None else None,
        "dtype": loaded.dtype,
        "context": item.contexts[0],
        "choices": [text.strip() for text in item.continuations],
        "gold": item.gold,
        "n_prefix": len(encoded.prefixes[0]),
        "n_layers": loaded.n_layers,
        "scores": grid(loaded, encoded),
    }
    key = config.model, item.item_id
    others = [other for other in records if (other["model"], other["item"]) != key]
    write_dials([*others, record], path)
    return record


def grid(loaded: LoadedModel, encoded: EncodedItem) -> list[list[list[list[int]]]]:
    """``[2, n_layers + 1, len(STRENGTHS), n_choices]``, see :func:`bidir_core.runs.dials.read_dials`."""
    n_layers = loaded.n_layers
    variants = []
    for sink in (0, 1):
        for first in range(n_layers + 1):
            for strength in STRENGTHS:
                rule = Rule(parse_regime(f"bidirectional:sink={sink},lambda={strength:g}"))
                variants.append((Rule(CAUSAL),) * first + (rule,) * (n_layers - first))
    ll = np.array(VariantScorer(loaded, encoded).score(variants))
    behind = np.rint(100 * (ll - ll.max(1, keepdims=True))).astype(int)
    return behind.reshape(2, n_layers + 1, len(STRENGTHS), -1).tolist()
