"""Fine-tune a model: a configuration in, one run folder with a checkpoint in ``final/`` out."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.common.process import told_when_lost
from bidir_core.common.progress import LOG, logging_to, phase, terminable
from bidir_core.common.settings import to_json
from bidir_core.data.encoding import EncodedItem, Encoder, check_vocabulary, vocabulary_of
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.evaluate.evaluate import check_attention
from bidir_core.evaluate.processes import PATIENCE, check_connected, main_asked_for, on_cpu
from bidir_core.evaluate.run_scoring import item_fields
from bidir_core.evaluate.scoring import Scorer, ScoringPlan, plan_scoring
from bidir_core.models import loading
from bidir_core.models.attention import (
    choose_implementation,
    install,
    rope_switch,
    text_decoder,
)
from bidir_core.models.devices import forget_peak_memory
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.runs.find import check_same, resumable
from bidir_core.runs.layout import FINETUNE_DIRS
from bidir_core.runs.records import make_record
from bidir_core.runs.run import Run, compute_metrics
from bidir_core.runs.writer import RunWriter
from bidir_core.train import student as sharding
from bidir_core.train.checkpoints import FOLDER as CHECKPOINTS
from bidir_core.train.config import MICRO_TOKENS, FinetuneConfig
from bidir_core.train.data import TrainingData, check_data, prepare_data
from bidir_core.train.final import (
    FINAL,
    check_room,
    cost,
    facts_of,
    metrics_of,
    save_final,
    write_data_report,
)
from bidir_core.train.loop import Counters, Stopped, Trainer
from bidir_core.train.losses import passes
from bidir_core.train.packing import Packer
from bidir_core.train.probe import run_training_probe
from bidir_core.train.student import Student, add_lora, compile_layers, frozen_copy


def run_finetune(config: FinetuneConfig, *, folder: Path | None = None) -> Path:
    """Train, and return the run folder. Raises UserError on bad input, before anything is written.

    ``folder`` names the exact run folder instead of one named by the clock.
    """
    return _finetune(config, folder=folder)


def resume_finetune(
    reference: str | Path, given: Mapping[str, Any], *, runs_dir: str | None = None
) -> Path:
    """Finish an unfinished fine-tune from its newest complete checkpoint.

    ``given`` are the settings named on this command line: identity fields among them must agree
    with the recorded ones, else UserError names those that differ; runtime fields take effect.
    """
    run, config = resumable(reference, "finetune", FinetuneConfig, given, runs_dir=runs_dir)
    if run.state == "done":
        return run.path
    check_attention(run)
    return _finetune(config, run=run)


def _finetune(
    config: FinetuneConfig, *, run: Run | None = None, folder: Path | None = None
) -> Path:
    regime = parse_regime(config.regime or "causal")
    from accelerate.utils import broadcast_object_list, set_seed

    check_data(config.data)
    sharded = sharding.wanted(config)
    accelerator = _accelerator(config)
    plan = loading.preflight(**loading.asked_by(config, regime=regime))
    # Padded rows of packed samples hold nothing that could be split: ``auto`` is sdpa or eager.
    plan = replace(plan, implementation=choose_implementation(plan.config, config.attn))
    phase("Preparing the training data")
    data = prepare_data(config, plan.tokenizer, plan.max_length, rope_switch(plan.config))
    check_vocabulary(data.encoded.ids, vocabulary_of(plan))
    # What is to be spread need not fit on the device first.
    load_plan = replace(plan, device=torch.device("cpu")) if sharded else plan
    forget_peak_memory(plan.device)
    loaded = replace(loading.load_weights(load_plan, keep_vision=True), device=plan.device)
    facts = facts_of(config, loaded, data)
    if run is not None:
        for key, subject in (
            ("model_fingerprint", "the model"),
            ("data_fingerprint", "the training data"),
            ("dtype", "the dtype"),
        ):
            check_same(run, key, facts[key], subject, required=True)
    set_seed(config.seed)
    base = frozen_copy(Student(loaded.model, loaded.handle)) if config.needs_base else None
    student = make_trainable(config, loaded)
    if sharded:
        sharding.shard(student, plan.device)
        if base is not None:
            sharding.shard_frozen(base, plan.device)
    writer = None
    if accelerator.is_main_process:
        writer = (
            RunWriter.resume(run)
            if run is not None
            else RunWriter.create(
                FINETUNE_DIRS[config.objective],
                to_json(config),
                root=config.runs_dir,
                name=config.name,
                folder=folder,
                **facts,
            )
        )
    (path,) = broadcast_object_list([writer.path if writer is not None else None])
    if writer is None:
        with main_asked_for(path, accelerator.num_processes):
            _train(config, student, base, data, loaded, accelerator, None, run, sharded)
            _whole_weights(config, student, sharded, keep=False)
        return path
    lost_notice = told_when_lost("--resume goes on from the newest checkpoint")
    with writer, terminable(), logging_to(writer.path / "log.txt"), lost_notice:
        LOG.info("%s, %s under %s -> %s", config.model, config.objective, regime, writer.id)
        for note in loaded.notes:
            LOG.warning("note: %s", note)
        if config.goal.leaky:
            LOG.warning("3A is leaky: its responses are visible to where they are predicted from")
        write_data_report(writer.path, data)
        LOG.info("%s: %s", config.data, data.summary())
        try:
            counters = _train(
                config, student, base, data, loaded, accelerator, writer, run, sharded
            )
        except Stopped as stopped:
            writer.cancel(str(stopped))
            raise
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {loaded.device}; resume with a smaller --micro-tokens or with "
                "--gradient-checkpointing"
            ) from error
        weights = _whole_weights(config, student, sharded, keep=True)
        save_final(writer.path, config, student, loaded, data, counters, weights)
        metrics = metrics_of(config, student, counters, writer.path / FINAL)
        writer.finish(cost=cost(counters, loaded), metrics=metrics)
        shutil.rmtree(writer.path / CHECKPOINTS, ignore_errors=True)
    return writer.path


def _whole_weights(
    config: FinetuneConfig, student: Student, sharded: bool, *, keep: bool
) -> dict[str, torch.Tensor] | None:
    """What the final checkpoint is written from, where the model is spread over the processes."""
    if not sharded:
        return None
    return sharding.gathered(student.model, keep=keep, trained_only=config.method == "lora")


def _train(
    config: FinetuneConfig,
    student: Student,
    base: Student | None,
    data: TrainingData,
    loaded: LoadedModel,
    accelerator: Any,
    writer: RunWriter | None,
    run: Run | None,
    sharded: bool = False,
) -> Counters:
    regime = parse_regime(config.regime or "causal")
    packer = Packer(
        data.encoded,
        batch_samples=config.batch_samples,
        row_tokens=min(config.max_tokens, 512),
        micro_tokens=config.micro_tokens or MICRO_TOKENS.get(loaded.device.type, 8192),
        seed=config.seed,
        prefix=config.goal.prefix,
        process=accelerator.process_index,
        n_processes=accelerator.num_processes,
        even=sharded,
    )
    student.model.train()
    if config.compile != "none":
        for network in (student, base):
            if network is not None:
                compile_layers(network)
    probe_packer = packer
    if sharded:  # all compute together, so all must ask the same
        probe_packer = copy.copy(packer)
        probe_packer.process = 0
    batches = probe_packer.step(0).batches
    if batches:
        batch = batches[0].to(loaded.device)
        student.check_head(batch, regime)
        probe = run_training_probe(student, batch, regime, leaky=config.goal.leaky)
        if writer is not None:
            writer.write_probe(probe.to_json())
        probe.require()
    sharding.settle(student.model)
    trainer = Trainer(
        config,
        student,
        packer,
        passes(config.goal, regime, config.causal_anchor),
        base=base,
        sharded=sharded,
        accelerator=accelerator,
        folder=writer.path if writer is not None else None,
        heartbeat=writer.heartbeat if writer is not None else None,
        quick_eval=_quick_eval(config, student, loaded) if writer is not None or sharded else None,
    )
    if writer is not None:
        check_room(writer.path, trainer)
        if config.tracker != "none":
            flat = {name: str(value) for name, value in to_json(config).items()}
            accelerator.project_configuration.logging_dir = str(writer.path)
            accelerator.init_trackers("tracker", config=flat)
    if run is not None:
        step = trainer.restore(run.path)
        LOG.info("resumed at step %d of %d", step, config.steps)
    counters = trainer.run()
    if config.tracker != "none":
        accelerator.end_training()
    return counters


def make_trainable(config: FinetuneConfig, loaded: LoadedModel) -> Student:
    """The loaded model as a student whose text weights, or whose LoRA adapter, can be trained."""
    model, handle = loaded.model, loaded.handle
    if config.method == "lora":
        model = add_lora(
            model, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout
        )
        handle = install(model, handle.implementation)
    else:
        for module in (text_decoder(model), model.get_output_embeddings()):
            module.requires_grad_(True)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.method == "lora" and (config.gradient_checkpointing or config.compile != "none"):
        # Layers that are computed again need an input with a gradient; layers that are compiled
        # would be once more, for the first one's frozen embeddings.
        model.enable_input_require_grads()
    return Student(model, handle)


def _accelerator(config: FinetuneConfig) -> Any:
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.tracking import get_available_trackers

    trackers = [config.tracker] if config.tracker != "none" else []
    if trackers and config.tracker not in {str(name) for name in get_available_trackers()}:
        raise UserError(
            f"--tracker {config.tracker}: that package is not installed; "
            f"pip install {config.tracker}"
        )
    accelerator = Accelerator(
        cpu=on_cpu(config.device),
        log_with=trackers or None,  # type: ignore[arg-type]
        project_dir="." if trackers else None,  # the run's own folder, once there is one
        # The others wait while the main one evaluates or writes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_connected(accelerator.num_processes)
    return accelerator


def _quick_eval(
    config: FinetuneConfig, student: Student, loaded: LoadedModel
) -> Callable[[], dict[str, Any]] | None:
    """A function that scores some items of each benchmark under both regimes, or None."""
    if not config.eval_every:
        return None
    items = load_items(
        PUBLISHED_TASKS, limit=config.eval_items, sample="stratified", fold="explore"
    )
    encoder = Encoder(loaded.tokenizer, chat_template=config.chat_template)
    encoded = [item for item in encoder.encode(items) if item.error is None]
    trained_regime = parse_regime(config.regime or "causal")
    plans = {
        regime: plan_scoring(
            encoded,
            regime=regime,
            device=loaded.device,
            implementation=student.handle.implementation,
        )
        for regime in (BIDIRECTIONAL if trained_regime.is_causal else trained_regime, CAUSAL)
    }

    def run() -> dict[str, Any]:
        training = student.model.training
        student.model.eval()
        try:
            # Layers compiled for training would be compiled again for each shape met here.
            with torch.compiler.set_stance("force_eager"):
                return {str(r): _scores(student, encoded, plan) for r, plan in plans.items()}
        finally:
            student.model.train(training)

    return run


def _scores(student: Student, encoded: list[EncodedItem], plan: ScoringPlan) -> dict[str, Any]:
    """Macro ``acc``, ``acc_norm`` and ``gold_prob``, and ``acc`` by task."""
    scorer = Scorer(student.model, student.handle, plan)
    metrics = compute_metrics(
        make_record(**item_fields(encoded[score.index], tokens=False), ll=score.ll, compact=True)
        for _, scores in scorer.score_all(batch.items for batch in plan.batches)
        for score in scores
    )
    tasks = dict(sorted(metrics["tasks"].items()))
    macro = {name: metrics["macro"][name] for name in ("acc", "acc_norm")}
    golds = [row["gold_prob"] for row in tasks.values()]
    macro["gold_prob"] = float("nan") if None in golds else float(np.mean(golds))
    return {
        **{name: round(value, 6) for name, value in macro.items()},
        "n": len(encoded),
        "tasks": {task: round(row["acc"], 6) for task, row in tasks.items()},
    }
