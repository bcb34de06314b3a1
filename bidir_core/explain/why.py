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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidir_core.common.errors import UserError
from bidir_core.common.files import write_json
from bidir_core.explain.why_config import WhyConfig, name_of, resolve, sentences, settings_for_run
from bidir_core.explain.why_search import Measure, investigate, short
from bidir_core.regimes import Regime, parse_regime
from bidir_core.runs.layout import LAB, check_new_run
from bidir_core.runs.writer import RunWriter

if TYPE_CHECKING:
    from bidir_core.data.encoding import EncodedItem
    from bidir_core.models.loading import LoadedModel
    from bidir_core.runs.run import Run

SCHEMA = 1

RESULT = "why.json"

KIND = "why"


def explain(config: WhyConfig, *, loaded: LoadedModel | None = None) -> Path:
    """Explain the item that the config names and return the run folder.

    ``loaded`` reuses a model in memory. Raises UserError on bad input, before anything is written.
    """
    from bidir_core.data.items import data_fingerprint
    from bidir_core.evaluate import evaluate
    from bidir_core.models import loading

    check_new_run(config.runs_dir, config.name)
    config, reading, run = resolve(config)
    regime = parse_regime(reading.regime)
    plan = loaded or evaluate.preflight(reading, regime)
    regime.check_layers(plan.n_layers)
    encoded, bos_added = _read(config, reading, plan, run)
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]
    writer = RunWriter.create(
        LAB,
        settings_for_run(config),
        root=config.runs_dir,
        name=config.folder_name,
        kind=KIND,
        model_fingerprint=loaded.fingerprint,
        data_fingerprint=data_fingerprint([encoded.item]),
        doc_hash=encoded.item.doc_hash,
        bos_added=bos_added,
        dtype=loaded.dtype,
        attention=loaded.implementation,
        device=str(loaded.device),
    )
    _write(writer, config, loaded, regime, encoded, run)
    return writer.path


def _read(config: WhyConfig, reading: Any, plan: Any, run: Run | None) -> tuple[EncodedItem, bool]:
    """The item as the run read it, tokenised; checked against the run's own record."""
    from bidir_core.data.tasks import load_items_by_id
    from bidir_core.evaluate import evaluate

    if reading.num_fewshot or reading.context != "full":
        items = [one for one in evaluate.read_items(reading) if one.doc_id == config.doc_id]
    else:
        items = load_items_by_id(
            config.task, [config.doc_id], split=reading.split,
            repeat_prompt=reading.repeat_prompt, data_source=reading.data_source,
        )  # fmt: skip
    if not items:
        raise UserError(f"there is no item {name_of(config.task)}/{config.doc_id}")
    encoded, bos_added = evaluate.encode(reading, plan, items)
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
    from bidir_core.common.progress import Progress, logging_to, terminable
    from bidir_core.models.devices import device_name, peak_memory_bytes

    with writer, terminable(), logging_to(writer.path / "log.txt") as log:
        log.info(
            "why %s on %s under %s -> %s",
            encoded.item.item_id, config.model, regime, writer.id,
        )  # fmt: skip
        started = time.monotonic()
        progress: Progress | None = None

        def advance(done: int, total: int) -> None:
            nonlocal progress
            if progress is None:
                progress = Progress(total, unit="mask", report=writer.heartbeat)
            progress.advance(done)

        result, computed = investigate(loaded, encoded, regime, config.metric, advance)
        if progress is not None:
            progress.close()
        result = {
            "model": config.model,
            "checkpoint": config.checkpoint,
            **result,
            "recorded": _recorded(run, encoded, config.metric),
        }
        result["sentences"] = sentences(result)
        for sentence in result["sentences"]:
            log.info("%s", sentence)
        write_json(writer.path / RESULT, {"schema": SCHEMA, **result})
        writer.finish(
            metrics={"n_items": 1, "tasks": {}, "flips": result["flips"]},
            cost={
                "seconds": round(time.monotonic() - started, 3),
                "computed_tokens": computed,
                "peak_memory_bytes": peak_memory_bytes(loaded.device),
                "device": device_name(loaded.device),
            },
        )


def _recorded(run: Run | None, encoded: EncodedItem, metric: str) -> dict[str, Any] | None:
    """What the run had recorded for this item, in other words what is to be explained."""
    record = run.item(encoded.item.task, encoded.item.doc_id) if run is not None else None
    if run is None or record is None or record["ll"] is None:
        return None
    measure = Measure(encoded, metric)
    return {"run": run.id, "choice": measure.choice(record["ll"]), "ll": short(record["ll"])}
