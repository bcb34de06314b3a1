"""Evaluate a model under a regime: items in, one run folder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bidir_core import heap, models, processes
from bidir_core.config import EvalConfig, to_json
from bidir_core.encoding import EncodedItem, Encoder, check_lengths
from bidir_core.errors import UserError
from bidir_core.items import Item, data_fingerprint
from bidir_core.models import LoadedModel
from bidir_core.regimes import Regime, parse_regime
from bidir_core.resuming import resumable
from bidir_core.run_layout import check_new_run, stage_dir_for
from bidir_core.run_scoring import score_into, score_share
from bidir_core.run_writer import RunWriter
from bidir_core.scoring import auto_batch_tokens
from bidir_core.store import Run
from bidir_core.tasks import check_selection, load_items
from bidir_core.training.overlap import refuse_trained_tasks


@heap.at_rest()
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
    facts = run_facts(loaded, items, bos_added, regime)
    facts["batch_tokens"] = config.batch_tokens or auto_batch_tokens(loaded.device)

    def begin() -> RunWriter:
        return RunWriter.create(
            stage_dir_for("eval", regime=regime, checkpoint=config.checkpoint),
            to_json(config),
            root=config.runs_dir,
            name=config.name,
            folder=folder,
            **facts,
        )

    return _score(begin, config, loaded, regime, encoded)


@heap.at_rest()
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
    run, config = resumable(reference, "eval", EvalConfig, given, runs_dir=runs_dir)
    if run.state == "done":
        return run.path  # nothing left to do, and saying so twice must be harmless
    if "device" in given:
        config = replace(config, device=given["device"])
    # "auto" may choose otherwise on another device; one run has one number format
    # and one batch plan.
    config = replace(
        config,
        dtype=run.config.get("dtype") or config.dtype,
        attn=run.config.get("attention") or config.attn,
        batch_tokens=run.config.get("batch_tokens") or config.batch_tokens,
    )
    regime = parse_regime(config.regime)
    plan = loaded or preflight(config, regime)
    items = read_items(config)
    check_same(run, "data_fingerprint", data_fingerprint(items), "the benchmark data")
    encoded, _ = encode(config, plan, items)
    loaded = loaded or models.load_weights(plan)  # type: ignore[arg-type]
    check_same(run, "model_fingerprint", loaded.fingerprint, "the model")
    before = run.status.get("cost")
    return _score(lambda: RunWriter.resume(run), config, loaded, regime, encoded, before)


def _score(
    begin: Callable[[], RunWriter],
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    encoded: Sequence[EncodedItem],
    before: Mapping[str, Any] | None = None,
) -> Path:
    """Score in this process, or share it with the others of an ``accelerate launch``."""
    crew = processes.team(config.device)
    writers = []

    def open_folder() -> Path:
        writers.append(begin())
        return writers[0].path

    path = crew.on_main(open_folder)
    if writers:
        score_into(writers[0], config, loaded, regime, encoded, before, team=crew)
    else:
        score_share(path, config, loaded, regime, encoded, crew)
    return path


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
        weights=config.weights,
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
        # Without a context there is no turn to wrap: the floor stands behind the BOS token alone.
        chat_template=config.chat_template and config.context != "none",
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


def run_facts(
    loaded: LoadedModel, items: Sequence[Item], bos_added: bool, regime: Regime
) -> dict[str, Any]:
    """What stands beside the settings in a run's ``config.json``."""
    warning = regime_warning(loaded.training_record, regime)
    splits = loaded.implementation == "split"
    return {
        "model_fingerprint": loaded.fingerprint,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "data_fingerprint": data_fingerprint(items),
        "bos_added": bos_added,
        "dtype": loaded.dtype,
        "attention": loaded.implementation,
        **({"fused_kernels": list(loaded.fused)} if loaded.fused else {}),
        **({"split_from_tokens": loaded.handle.split_from} if splits else {}),
        "device": str(loaded.device),
        "training_record": loaded.training_record,
        "warnings": [warning] if warning else [],
    }


def check_same(run: Run, key: str, now: str, what: str) -> None:
    """UserError if a run that is to be resumed was made with other data or another model."""
    recorded = run.config.get(key)
    if recorded is not None and recorded != now:
        raise UserError(
            f"cannot resume '{run.id}': {what} changed since it was started; start a new run "
            "without --resume"
        )
