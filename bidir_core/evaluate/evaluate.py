"""Evaluate a model under a regime: items in, one run folder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from bidir_core.common.errors import UserError
from bidir_core.common.progress import phase
from bidir_core.common.settings import to_json
from bidir_core.data.encoding import CHAT_DATE, EncodedItem, Encoder, check_lengths
from bidir_core.data.items import (
    GivenItems,
    Item,
    answer_positions,
    data_fingerprint,
    one_sided_sentences,
)
from bidir_core.data.tasks import load_selected, task_names
from bidir_core.evaluate import processes
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.run_scoring import (
    refuse_trained_tasks,
    same_name_sentences,
    score_into,
    score_share,
)
from bidir_core.evaluate.scoring import ScoringPlan, auto_batch_tokens, plan_scoring
from bidir_core.models import devices, loading
from bidir_core.models.attention import ATTENTIONS
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import Regime, parse_regime
from bidir_core.runs.find import check_same, resumable
from bidir_core.runs.layout import check_new_run, evaluation_dir
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter

ConfigT = TypeVar("ConfigT", bound=Any)


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
    (path,) = evaluate_regimes(config, [parse_regime(config.regime)], loaded=loaded, folder=folder)
    return path


@devices.at_rest()
def evaluate_regimes(
    config: EvalConfig,
    regimes: Sequence[Regime],
    *,
    loaded: LoadedModel | None = None,
    folder: Path | None = None,
) -> list[Path]:
    """Run one evaluation for each regime, in place of the config's: a run folder each.

    The model is loaded and the items are encoded once; otherwise each is what :func:`evaluate`
    makes of it. Raises UserError on bad input in any of them before anything is written.
    """
    if folder is None:
        check_new_run(config.runs_dir, config.name)
    plan = loaded or preflight(config, regimes[0])
    for regime in regimes[1:]:
        regime.check_layers(plan.n_layers)
    plans, shared_facts = prepare(config, plan, regimes)
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]

    def run(regime: Regime) -> Path:
        run_config = replace(config, regime=str(regime))
        facts = run_facts(loaded, shared_facts, regime, config.tasks)
        if config.items_file is not None:
            facts["given_items"] = GivenItems(config.items_file).record()
        facts["batch_tokens"] = config.batch_tokens or auto_batch_tokens(loaded.device)

        def begin() -> RunWriter:
            return RunWriter.create(
                evaluation_dir(regime, checkpoint=config.checkpoint),
                to_json(run_config),
                root=config.runs_dir,
                name=config.name,
                folder=folder,
                **facts,
            )

        return _score(begin, run_config, loaded, regime, plans[regime.is_causal])

    return [run(regime) for regime in regimes]


@devices.at_rest()
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
        return run.path  # resuming a finished run changes nothing
    config = as_recorded(config, run)
    if "adapter" not in run.settings and config.dtype != "float32":
        config = replace(config, adapter="beside")  # what runs did before the setting existed
    regime = parse_regime(config.regime)
    plan = loaded or preflight(config, regime)
    plans, facts = prepare(config, plan, [regime], chat_date_of(run))
    check_same(run, "data_fingerprint", facts["data_fingerprint"], "the benchmark data")
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]
    check_same(run, "model_fingerprint", loaded.fingerprint, "the model")
    previous_cost = run.status.get("cost")
    scoring = plans[regime.is_causal]
    return _score(lambda: RunWriter.resume(run), config, loaded, regime, scoring, previous_cost)


def _score(
    begin: Callable[[], RunWriter],
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    plan: ScoringPlan,
    previous_cost: Mapping[str, Any] | None = None,
) -> Path:
    """Score in this process, or share it with the others of an ``accelerate launch``."""
    team = processes.team(config.device)
    writer: RunWriter | None = None  # only in the main process

    def open_folder() -> Path:
        nonlocal writer
        writer = begin()
        return writer.path

    path = team.on_main(open_folder)
    if writer is not None:
        score_into(writer, config, loaded, regime, plan, previous_cost, team=team)
    else:
        with processes.main_asked_for(path, team.world):
            score_share(path, config, loaded, regime, plan, team)
    return path


def prepare(
    config: EvalConfig,
    model: LoadedModel | loading.Preflight,
    regimes: Sequence[Regime],
    chat_date: str = CHAT_DATE,
) -> tuple[dict[bool, ScoringPlan], dict[str, Any]]:
    """Read the items, tokenise them and plan the batches, before any weight is read.

    The plans, for causal regimes (True) and for the others, and what config.json says of the items.
    """
    items = read_items(config)
    encoded, bos_added = encode(config, model, items, chat_date)
    plans = {
        regime.is_causal: plan_scoring(
            encoded,
            regime=regime,
            device=model.device,
            batch_tokens=config.batch_tokens,
            implementation=model.implementation,
        )
        for regime in regimes
    }
    return plans, item_facts(items, bos_added, chat_date if config.chat_template else None)


def read_items(config: EvalConfig) -> list[Item]:
    """The items that the config selects, in task order."""
    phase("Reading the items")
    return load_selected(vars(config))


def preflight(config: EvalConfig, regime: Regime) -> loading.Preflight:
    """Every check that needs neither weights nor data; the cheap ones come before any download."""
    task_names(config.tasks)  # a typo is told before anything is fetched
    plan = loading.preflight(**loading.asked_by(config, regime=regime))
    refuse_trained_tasks(config.tasks, plan.checkpoint.record if plan.checkpoint else None)
    return plan


def chat_date_of(run: Run) -> str:
    """The date that a run's chat template was told.

    Runs that do not record it used the day on which they ran.
    """
    if recorded := run.config.get("chat_date"):
        return str(recorded)
    return f"{run.created:%Y-%m-%d}" if run.created else CHAT_DATE


def encode(
    config: EvalConfig,
    loaded: LoadedModel | loading.Preflight,
    items: Sequence[Item],
    chat_date: str = CHAT_DATE,
) -> tuple[list[EncodedItem], bool]:
    """Tokenise the items as the config says; also whether a BOS stands in front of them."""
    encoder = Encoder.of(
        loaded,
        bos=config.bos,
        # Without a context there is no turn to wrap: the floor stands behind the BOS token alone.
        chat_template=config.chat_template and config.context != "none",
        chat_date=chat_date,
    )
    encoded = encoder.encode(items)
    bos_added = encoder.bos_added(encoded)
    check_lengths(encoded, loaded.max_length)
    return encoded, bos_added


def regime_warning(record: Mapping[str, Any] | None, regime: Regime) -> str | None:
    """A warning where a checkpoint is evaluated under another regime than it was trained with."""
    trained = (record or {}).get("regime")
    if not isinstance(trained, str) or trained == str(regime):
        return None
    objective = (record or {}).get("objective") or "unknown objective"
    return (
        f"warning: the checkpoint was trained under '{trained}' ({objective}) and is evaluated "
        f"under '{regime}'"
    )


def item_facts(items: Sequence[Item], bos_added: bool, chat_date: str | None) -> dict[str, Any]:
    """What a run's ``config.json`` says of its items and how they were written out."""
    facts: dict[str, Any] = {"data_fingerprint": data_fingerprint(items), "bos_added": bos_added}
    if chat_date:
        facts["chat_date"] = chat_date
    return {**facts, "answer_positions": answer_positions(items)}


def run_facts(
    loaded: LoadedModel, facts: Mapping[str, Any], regime: Regime, tasks: Sequence[str]
) -> dict[str, Any]:
    """What stands beside the settings in a run's ``config.json``; ``facts``: of its items."""
    warning = regime_warning(loaded.training_record, regime)
    optional: dict[str, Any] = {}
    if loaded.fused:
        optional["fused_kernels"] = list(loaded.fused)
    if loaded.implementation == "split":
        optional["split_from_tokens"] = loaded.handle.split_from
    if loaded.adapter:
        optional["adapter"] = loaded.adapter
    return {
        "model_fingerprint": loaded.fingerprint,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        **facts,
        "dtype": loaded.dtype,
        "attention": loaded.implementation,
        "device": str(loaded.device),
        **optional,
        "training_record": loaded.training_record,
        "warnings": [
            *([warning] if warning else []),
            *getattr(loaded, "notes", ()),  # a user's own model object has none
            *same_name_sentences(tasks, loaded.training_record),
            *one_sided_sentences(facts["answer_positions"]),
        ],
    }


def as_recorded(config: ConfigT, run: Run) -> ConfigT:
    """A resumed run's settings, whatever the device named now.

    "auto" may choose otherwise on another device, but a run keeps its number format and batch plan.
    """
    check_attention(run)
    recorded = {"dtype": "dtype", "attn": "attention", "batch_tokens": "batch_tokens"}
    known = {
        name: run.config[fact]
        for name, fact in recorded.items()
        if hasattr(config, name) and run.config.get(fact)
    }
    return replace(config, **known)


def check_attention(run: Run) -> None:
    """UserError if a run that is to be resumed attended in a way that this version does not have."""
    name = run.settings.get("attn") or "auto"
    if name not in ATTENTIONS:
        raise UserError(
            f"cannot resume '{run.id}': attention '{name}', which it was started with, is no longer "
            "there; start a new run without --resume"
        )
