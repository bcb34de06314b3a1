"""Evaluate a model under a regime: items in, one run folder out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.launch import ProcessLost
from bidir_core.common.progress import Progress, logging_to, phase, terminable
from bidir_core.common.settings import to_json
from bidir_core.data.answer_positions import answer_positions, one_sided_sentences
from bidir_core.data.chat import CHAT_DATE
from bidir_core.data.encoding import EncodedItem, Encoder, check_lengths, vocabulary_of
from bidir_core.data.given_items import GivenItems
from bidir_core.data.items import Item, data_fingerprint
from bidir_core.data.tasks import check_selection, load_selected
from bidir_core.evaluate import processes
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.overlap import refuse_trained_tasks, same_name_sentences
from bidir_core.evaluate.patching import parse_patch
from bidir_core.evaluate.processes import ALONE, PARTS, Part, Parts, Team, absorb, share
from bidir_core.evaluate.scoring import (
    ItemScore,
    Scorer,
    ScoringPlan,
    auto_batch_tokens,
    plan_scoring,
)
from bidir_core.models import devices, loading
from bidir_core.models.devices import device_name, forget_peak_memory, peak_memory_bytes
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.regimes import Regime, parse_regime
from bidir_core.runs.layout import check_new_run, stage_dir_for
from bidir_core.runs.records import Key, make_record
from bidir_core.runs.resume import resumable
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter


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
    items = read_items(config)
    encoded, bos_added = encode(config, plan, items)
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]
    chat_date = CHAT_DATE if config.chat_template else None

    def run(regime: Regime) -> Path:
        own = replace(config, regime=str(regime))
        facts = run_facts(loaded, items, bos_added, regime, config.tasks, chat_date)
        if config.items_file is not None:
            facts["given_items"] = GivenItems(config.items_file).record()
        facts["batch_tokens"] = config.batch_tokens or auto_batch_tokens(loaded.device)

        def begin() -> RunWriter:
            return RunWriter.create(
                stage_dir_for("eval", regime=regime, checkpoint=config.checkpoint),
                to_json(own),
                root=config.runs_dir,
                name=config.name,
                folder=folder,
                **facts,
            )

        return _score(begin, own, loaded, regime, encoded)

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
    if "adapter" not in run.settings and config.dtype != "float32":
        config = replace(config, adapter="beside")  # what runs did before the setting existed
    regime = parse_regime(config.regime)
    plan = loaded or preflight(config, regime)
    items = read_items(config)
    check_same(run, "data_fingerprint", data_fingerprint(items), "the benchmark data")
    encoded, _ = encode(config, plan, items, chat_date_of(run))
    loaded = loaded or loading.load_weights(plan)  # type: ignore[arg-type]
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
        with processes.main_asked_for(path, crew.world):
            score_share(path, config, loaded, regime, encoded, crew)
    return path


def read_items(config: EvalConfig) -> list[Item]:
    """The items that the config selects, in task order."""
    phase("Reading the items")
    return load_selected(vars(config))


def preflight(config: EvalConfig, regime: Regime) -> loading.Preflight:
    """Every check that needs neither weights nor data; the cheap ones come before any download."""
    check_selection(
        config.tasks,
        limit=config.limit,
        sample=config.sample,
        fold=config.fold,
        context=config.context,
        num_fewshot=config.num_fewshot,
    )
    plan = loading.preflight(
        config.model,
        revision=config.revision,
        checkpoint=config.checkpoint,
        dtype=config.dtype,
        device=config.device,
        attn=config.attn,
        weights=config.weights,
        adapter=config.adapter,
        regime=regime,
    )
    refuse_trained_tasks(config.tasks, plan.checkpoint.record if plan.checkpoint else None)
    return plan


def chat_date_of(run: Run) -> str:
    """The date that a run's chat template was told.

    Runs that do not record it told the day on which they ran.
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
    encoder = Encoder(
        loaded.tokenizer,
        bos=config.bos,  # type: ignore[arg-type]
        # Without a context there is no turn to wrap: the floor stands behind the BOS token alone.
        chat_template=config.chat_template and config.context != "none",
        chat_date=chat_date,
        vocabulary=vocabulary_of(loaded),
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
    loaded: LoadedModel,
    items: Sequence[Item],
    bos_added: bool,
    regime: Regime,
    tasks: Sequence[str],
    chat_date: str | None = None,
) -> dict[str, Any]:
    """What stands beside the settings in a run's ``config.json``."""
    warning = regime_warning(loaded.training_record, regime)
    positions = answer_positions(items)
    splits = loaded.implementation == "split"
    return {
        "model_fingerprint": loaded.fingerprint,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "data_fingerprint": data_fingerprint(items),
        "bos_added": bos_added,
        **({"chat_date": chat_date} if chat_date else {}),
        "dtype": loaded.dtype,
        "attention": loaded.implementation,
        **({"fused_kernels": list(loaded.fused)} if loaded.fused else {}),
        **({"split_from_tokens": loaded.handle.split_from} if splits else {}),
        "device": str(loaded.device),
        **({"adapter": loaded.adapter} if loaded.adapter else {}),
        "training_record": loaded.training_record,
        "answer_positions": positions,
        "warnings": [
            *([warning] if warning else []),
            *getattr(loaded, "notes", ()),  # a model of one's own has none
            *same_name_sentences(tasks, loaded.training_record),
            *one_sided_sentences(positions),
        ],
    }


def check_same(run: Run, key: str, now: str, what: str) -> None:
    """UserError if a run that is to be resumed was made with other data or another model."""
    recorded = run.config.get(key)
    if recorded is not None and recorded != now:
        raise UserError(
            f"cannot resume '{run.id}': {what} changed since it was started; start a new run "
            "without --resume"
        )


# The scoring of one run: probe the model, run the planned batches, record, complete the folder.


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
    team: Team = ALONE,
) -> None:
    """Probe the model, score what the run has not recorded, and complete the run.

    ``before``: the cost of the process that was killed, if the run is resumed. ``plan`` reuses a
    plan made for these items; ``title`` names the progress bar; ``advanced`` is told of items as
    they are done. In a ``team`` this is what its main process does; see :func:`score_share`.
    """
    parts = Parts(writer.path, team)
    with (
        writer,
        terminable(),
        logging_to(writer.path / "log.txt") as log,
        devices.at_rest(),
        devices.reusing_memory(loaded.device),
        parts.asked_why(),
    ):
        # What other processes had recorded, and spent, when the run was stopped.
        spent: list[Mapping[str, Any]] = [before or {}, *absorb(writer)]
        log.info("%s under %s, %d items -> %s", config.model, regime, len(encoded), writer.id)
        for warning in writer.config.get("warnings") or []:
            log.warning("%s", warning)
        forget_peak_memory(loaded.device)

        def probe() -> None:
            report = run_probe(loaded, regime)
            writer.write_probe(report.to_json())
            report.require(_meaningless(writer.path))

        # A GPU computes its first batches meanwhile; no score is looked at before the probe passes.
        beside = _beside(loaded)
        if not beside:
            probe()
        started = time.monotonic()
        done = team.on_main(lambda: writer.recorded)
        scorer = _scorer(config, loaded, regime, encoded, plan)
        others = 0  # items that the other processes have scored so far

        def cost() -> dict[str, Any]:
            return _cost(scorer, loaded, time.monotonic() - started, spent)

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

        def told(theirs: int) -> None:
            nonlocal others
            step(theirs - others)
            others = theirs

        compact = config.compact or writer.is_slim
        mine = _share(scorer.plan, done, team)
        for items, scores in scorer.score_all(mine, probe if beside else None):
            writer.append(_record(encoded[s.index], s, compact) for s in scores)
            step(len(items))
            told(sum(state["done"] for state in parts.check().values()))
        unscorable = [one for one in encoded if one.error is not None and _key(one) not in done]
        writer.append(_record(one, None, compact) for one in unscorable)
        step(len(unscorable))
        if team.world > 1:
            parts.wait(told)
            spent += absorb(writer)
        progress.close()
        if lost := {_key(one) for one in encoded} - writer.recorded:
            # Parts can vanish: a killed launch's stray process, a folder that is slow to show files.
            raise ProcessLost(
                f"{len(lost)} of {len(encoded)} items were recorded by none of the processes; "
                "--resume scores them"
            )
        metrics = writer.finish(
            cost=cost() | ({"processes": team.world} if team.world > 1 else {}),
            order=map(_key, encoded),
        )
        for name, row in metrics["tasks"].items() if not writer.is_slim else ():
            log.info(
                "%-16s n=%-6d acc %.4f (standard error %.4f)%s",
                name,
                row["n"],
                row["acc"],
                row["acc_stderr"] or 0,
                "" if row["acc_norm"] is None else f"   acc_norm {row['acc_norm']:.4f}",
            )
        log.info(
            "%-16s          acc %.4f   acc_norm %.4f   (%d item errors)",
            "macro",
            metrics["macro"]["acc"],
            metrics["macro"]["acc_norm"],
            metrics["n_errors"],
        )


def score_share(
    run: Path,
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    encoded: Sequence[EncodedItem],
    team: Team,
) -> None:
    """What every process of a launch but the main one does: score its share into a part file."""
    with terminable(), devices.at_rest(), devices.reusing_memory(loaded.device):
        # On a CPU beside the main process's, before its clock starts; on a GPU beside the scoring.
        report = None if _beside(loaded) else run_probe(loaded, regime)
        done: set[Key] = team.on_main(set)
        part = Part(run / PARTS, team.rank)

        def probe() -> None:
            (report or run_probe(loaded, regime)).require(_meaningless(run))

        try:
            scorer = _scorer(config, loaded, regime, encoded, None)
            for _, scores in scorer.score_all(_share(scorer.plan, done, team), probe):
                records = [_record(encoded[s.index], s, config.compact) for s in scores]
                part.append(records, _cost(scorer, loaded, 0.0, ()))
        except BaseException as error:
            part.finish(error=" ".join(str(error).split())[:300] or type(error).__name__)
            raise
        part.finish()


def _beside(loaded: LoadedModel) -> bool:
    """Whether the probe asks while the first batches are computed.

    Not under flex, which the probe has compiled before the clock starts.
    """
    return loaded.device.type == "cuda" and loaded.implementation != "flex"


def _meaningless(run: Path) -> str:
    return f"so its scores would mean nothing; see {run / 'probe.json'}"


def _scorer(
    config: EvalConfig,
    loaded: LoadedModel,
    regime: Regime,
    encoded: Sequence[EncodedItem],
    plan: ScoringPlan | None,
) -> Scorer:
    plan = plan or plan_scoring(
        encoded,
        regime=regime,
        device=loaded.device,
        batch_tokens=config.batch_tokens,
        implementation=loaded.implementation,
    )
    patch = parse_patch(config.patch) if config.patch else None
    return Scorer(loaded.model, loaded.handle, plan.under(regime, patch))


def _share(plan: ScoringPlan, done: set[Key], team: Team) -> list[list[int]]:
    """The batches left for this process; a batch keeps its other items when some are done."""
    left = [[i for i in batch.items if _key(plan.encoded[i]) not in done] for batch in plan.batches]
    weights = [sum(map(len, segments)) for segments in plan.segments]
    return share([items for items in left if items], weights, team)


def _key(one: EncodedItem) -> Key:
    return one.item.task, one.item.doc_id


def _record(one: EncodedItem, score: ItemScore | None, compact: bool) -> dict[str, Any]:
    return make_record(
        **item_fields(one, tokens=not compact),
        ll=None if score is None else score.ll,
        token_ll=None
        if score is None or compact
        else [np.round(t, 6).tolist() for t in score.token_ll],
        error=one.error,
        compact=compact,
    )


def item_fields(one: EncodedItem, *, tokens: bool = True) -> dict[str, Any]:
    """What a record says of an item before any model has seen it, with its ``tokens`` or without."""
    item = one.item
    fields = {
        "task": item.task,
        "doc_id": item.doc_id,
        "doc_hash": item.doc_hash,
        "gold": item.gold,
        "contexts": one.contexts,
        "continuations": item.continuations,
        "n_prefix_tokens": [len(own.ids) for own in one.prefixes],
        "n_continuation_tokens": [len(own.ids) for own in one.continuations],
        "prompt_group": item.prompt_group,
        "pair_id": item.pair_id,
    }
    if tokens:
        for name, of in (("prefix", one.prefixes), ("continuation", one.continuations)):
            fields[f"{name}_token_ids"] = [own.ids.tolist() for own in of]
            fields[f"{name}_token_offsets"] = [own.offsets.tolist() for own in of]
    return fields


def _cost(
    scorer: Scorer, loaded: LoadedModel, seconds: float, others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What was spent, with what others spent for the same run: killed or parallel processes."""
    spent = {
        "seconds": round(seconds, 3),
        "prefix_tokens": scorer.cost.prefix_tokens,
        "continuation_tokens": scorer.cost.continuation_tokens,
        "computed_tokens": scorer.cost.computed_tokens,
        "out_of_memory": scorer.cost.out_of_memory,
    }
    for name in spent:
        spent[name] += sum(other.get(name, 0) for other in others)
    return {
        **spent,
        "peak_memory_bytes": peak_memory_bytes(loaded.device),
        "device": device_name(loaded.device),
    }
