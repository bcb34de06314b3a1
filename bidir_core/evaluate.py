"""Evaluate a model under a regime: items in, one run folder out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core import models
from bidir_core.config import EvalConfig, changed_identity, from_json, to_json
from bidir_core.devices import device_name, peak_memory_bytes
from bidir_core.encoding import EncodedItem, Encoder, check_lengths
from bidir_core.errors import UserError
from bidir_core.items import Item, data_fingerprint
from bidir_core.models import LoadedModel
from bidir_core.patching import Patch
from bidir_core.probe import run_probe
from bidir_core.progress import Progress, logging_to, terminable
from bidir_core.records import make_record
from bidir_core.regimes import Regime, parse_regime
from bidir_core.run_layout import check_new_run, stage_dir_for
from bidir_core.run_writer import RunWriter
from bidir_core.scoring import ItemScore, Scorer, ScoringPlan, plan_scoring
from bidir_core.store import Run, find_run
from bidir_core.tasks import check_selection, load_items
from bidir_core.training.overlap import refuse_trained_tasks


def evaluate(
    config: EvalConfig,
    *,
    loaded: LoadedModel | None = None,
    folder: Path | None = None,
) -> Path:
    """Run one evaluation and return its run folder. Shows progress on standard error.

    ``loaded`` reuses a model that is in memory already; ``folder`` names the exact run folder
    (a point of a sweep). Raises UserError on bad input, before anything is written.
    """
    regime = parse_regime(config.regime)
    if folder is None:
        check_new_run(config.runs_dir, config.name)
    plan = loaded or preflight(config, regime)
    items = read_items(config)
    encoded, bos_added = encode(config, plan, items)
    loaded = loaded or models.load_weights(plan)  # type: ignore[arg-type]
    writer = RunWriter.create(
        stage_dir_for("eval", regime=regime, checkpoint=config.checkpoint),
        to_json(config),
        root=config.runs_dir,
        name=config.name,
        folder=folder,
        **run_facts(loaded, items, bos_added, regime),
    )
    score_into(writer, config, loaded, regime, encoded)
    return writer.path


def resume(
    reference: str | Path,
    given: Mapping[str, Any],
    *,
    runs_dir: str | None = None,
    loaded: LoadedModel | None = None,
) -> Path:
    """Finish an unfinished run, scoring only what it has not recorded.

    ``loaded`` reuses a model that is in memory already, as in :func:`evaluate`.

    ``given`` are the settings named on this command line; identity fields among them must agree
    with the recorded ones, else UserError names those that differ.
    """
    run = find_run(reference, roots=[runs_dir] if runs_dir else None)
    if run.state == "corrupt":
        raise UserError(f"the run '{run.id}' cannot be resumed: {run.error}; start a new one")
    if run.config.get("kind", "eval") != "eval":
        raise UserError(f"the run '{run.id}' is not an evaluation; resume it with its own command")
    config = from_json(EvalConfig, run.settings)
    changed = changed_identity(config, given)
    if changed:
        raise UserError(
            f"cannot resume '{run.id}' with {', '.join(changed)}: that is another run; leave the "
            "flag out, or start a new run without --resume"
        )
    if run.state == "done":
        return run.path  # nothing left to do, and saying so twice must be harmless
    if "device" in given:
        config = replace(config, device=given["device"])
    # "auto" may choose otherwise on another device; one run has one number format.
    config = replace(
        config,
        dtype=run.config.get("dtype") or config.dtype,
        attn=run.config.get("attention") or config.attn,
    )
    regime = parse_regime(config.regime)
    plan = loaded or preflight(config, regime)
    items = read_items(config)
    check_same(run, "data_fingerprint", data_fingerprint(items), "the benchmark data")
    encoded, _ = encode(config, plan, items)
    loaded = loaded or models.load_weights(plan)  # type: ignore[arg-type]
    check_same(run, "model_fingerprint", loaded.fingerprint, "the model")
    writer = RunWriter.resume(run)
    score_into(writer, config, loaded, regime, encoded, before=run.status.get("cost"))
    return writer.path


def read_items(config: EvalConfig) -> list[Item]:
    """The items that the config selects, in task order."""
    return load_items(
        config.tasks,
        split=config.split,
        limit=config.limit,
        sample=config.sample,  # type: ignore[arg-type]
        seed=config.seed,
        fold=config.fold,  # type: ignore[arg-type]
        num_fewshot=config.num_fewshot,
        context=config.context,  # type: ignore[arg-type]
        data_source=config.data_source,
    )


def preflight(config: EvalConfig, regime: Regime) -> models.Preflight:
    """Every check that needs neither weights nor data; the cheap ones come before any download."""
    check_selection(
        config.tasks,
        limit=config.limit,
        sample=config.sample,
        fold=config.fold,
        context=config.context,
        num_fewshot=config.num_fewshot,
    )
    plan = models.preflight(
        config.model,
        revision=config.revision,
        checkpoint=config.checkpoint,
        dtype=config.dtype,
        device=config.device,
        attn=config.attn,
        regime=regime,
    )
    refuse_trained_tasks(config.tasks, plan.checkpoint.record if plan.checkpoint else None)
    return plan


def encode(
    config: EvalConfig, loaded: LoadedModel | models.Preflight, items: Sequence[Item]
) -> tuple[list[EncodedItem], bool]:
    """Tokenise the items as the config says; also whether a BOS stands in front of them."""
    encoder = Encoder(
        loaded.tokenizer,
        bos=config.bos,  # type: ignore[arg-type]
        chat_template=config.chat_template,
    )
    encoded = encoder.encode(items)
    bos_added = encoder.bos_added(encoded)
    check_lengths(encoded, loaded.max_length)
    return encoded, bos_added


def regime_warning(record: Mapping[str, Any] | None, regime: Regime) -> str | None:
    """What to tell who evaluates a checkpoint under another regime than it was trained with."""
    trained = (record or {}).get("regime")
    if not isinstance(trained, str) or trained == str(regime):
        return None
    objective = (record or {}).get("objective") or "unknown objective"
    return (
        f"warning: the checkpoint was trained under '{trained}' ({objective}) and is evaluated "
        f"under '{regime}'"
    )


def score_into(
    writer: RunWriter,
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    encoded: Sequence[EncodedItem],
    before: Mapping[str, Any] | None = None,
    *,
    plan: ScoringPlan | None = None,
    title: str = "",
    advanced: Callable[[int], None] | None = None,
) -> None:
    """Probe the model, score what the run has not recorded, and complete the run.

    ``before``: the cost of the process that was killed, if the run is resumed. ``plan`` reuses a
    plan made for these items; ``title`` names the progress bar; ``advanced`` is told of items as
    they are done.
    """
    with writer, terminable(), logging_to(writer.path / "log.txt") as log:
        log.info("%s under %s, %d items -> %s", config.model, regime, len(encoded), writer.id)
        if warning := regime_warning(loaded.training_record, regime):
            log.warning("%s", warning)
        report = run_probe(loaded, regime)
        writer.write_probe(report.to_json())
        if not report.passed:
            failed = ", ".join(check.name for check in report.checks if not check.passed)
            raise UserError(
                f"the mask probe failed ({failed}): {config.model} does not attend as '{regime}' "
                f"says, so its scores would mean nothing; see {writer.path / 'probe.json'}"
            )
        started = time.monotonic()
        plan = plan or plan_scoring(
            encoded, regime=regime, device=loaded.device, batch_tokens=config.batch_tokens
        )
        plan = plan.under(regime, Patch.parse(config.patch) if config.patch else None)
        scorer = Scorer(loaded.model, loaded.handle, plan)
        done = writer.recorded
        left = [
            [i for i in batch.items if (encoded[i].item.task, encoded[i].item.doc_id) not in done]
            for batch in plan.batches
        ]

        def cost() -> dict[str, Any]:
            return _cost(scorer, loaded, time.monotonic() - started, before)

        progress = Progress(
            len(encoded),
            done=len(done),
            title=title or str(regime),
            report=lambda *a, **k: writer.heartbeat(*a, **k, cost=cost()),
        )

        def step(n: int) -> None:
            progress.advance(n)
            if advanced is not None:
                advanced(n)

        unscorable = [
            one
            for one in encoded
            if one.error is not None and (one.item.task, one.item.doc_id) not in done
        ]
        compact = config.compact or writer.is_slim
        writer.append(_record(one, None, compact) for one in unscorable)
        step(len(unscorable))
        for items in filter(None, left):
            scores = list(scorer.score(items))
            writer.append(_record(encoded[s.index], s, compact) for s in scores)
            step(len(items))
        progress.close()
        metrics = writer.finish(
            cost=cost(), order=[(one.item.task, one.item.doc_id) for one in encoded]
        )
        for name, row in metrics["tasks"].items():
            log.info(
                "%-16s n=%-6d acc %.4f ± %.4f", name, row["n"], row["acc"], row["acc_stderr"] or 0
            )
        log.info(
            "%-16s          acc %.4f   acc_norm %.4f   (%d item errors)",
            "macro",
            metrics["macro"]["acc"],
            metrics["macro"]["acc_norm"],
            metrics["n_errors"],
        )


def _record(one: EncodedItem, score: ItemScore | None, compact: bool) -> dict[str, Any]:
    return make_record(
        **item_fields(one),
        ll=None if score is None else score.ll,
        token_ll=None if score is None else [np.round(t, 6).tolist() for t in score.token_ll],
        error=one.error,
        compact=compact,
    )


def item_fields(one: EncodedItem) -> dict[str, Any]:
    """What a record says of an item before any model has seen it."""
    item = one.item
    return {
        "task": item.task,
        "doc_id": item.doc_id,
        "doc_hash": item.doc_hash,
        "gold": item.gold,
        "contexts": one.contexts,
        "continuations": item.continuations,
        "n_prefix_tokens": [len(tokens) for tokens in one.prefixes],
        "n_continuation_tokens": [len(tokens) for tokens in one.continuations],
        "prefix_token_ids": [tokens.ids.tolist() for tokens in one.prefixes],
        "prefix_token_offsets": [tokens.offsets.tolist() for tokens in one.prefixes],
        "continuation_token_ids": [tokens.ids.tolist() for tokens in one.continuations],
        "continuation_token_offsets": [t.offsets.tolist() for t in one.continuations],
        "prompt_group": item.prompt_group,
    }


def run_facts(
    loaded: LoadedModel, items: Sequence[Item], bos_added: bool, regime: Regime
) -> dict[str, Any]:
    """What stands beside the settings in a run's ``config.json``."""
    warning = regime_warning(loaded.training_record, regime)
    return {
        "model_fingerprint": loaded.fingerprint,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "data_fingerprint": data_fingerprint(items),
        "bos_added": bos_added,
        "dtype": loaded.dtype,
        "attention": loaded.implementation,
        "device": str(loaded.device),
        "training_record": loaded.training_record,
        "warnings": [warning] if warning else [],
    }


def _cost(
    scorer: Scorer, loaded: LoadedModel, seconds: float, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    spent = {
        "seconds": round(seconds, 3),
        "prefix_tokens": scorer.cost.prefix_tokens,
        "continuation_tokens": scorer.cost.continuation_tokens,
        "computed_tokens": scorer.cost.computed_tokens,
        "out_of_memory": scorer.cost.out_of_memory,
    }
    for name in spent:  # a resumed run adds to what the killed one had spent
        spent[name] += (before or {}).get(name, 0)
    return {
        **spent,
        "peak_memory_bytes": peak_memory_bytes(loaded.device),
        "device": device_name(loaded.device),
    }


def check_same(run: Run, key: str, now: str, what: str) -> None:
    """UserError if a run that is to be resumed was made with other data or another model."""
    recorded = run.config.get(key)
    if recorded is not None and recorded != now:
        raise UserError(
            f"cannot resume '{run.id}': {what} changed since it was started; start a new run "
            "without --resume"
        )
