"""Fine-tune a model: a configuration in, one run folder with a checkpoint in ``final/`` out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bidir_core import models
from bidir_core.atomic import sync_folder, write_json
from bidir_core.attention import install, text_decoder
from bidir_core.config import changed_identity, from_json, to_json
from bidir_core.errors import UserError
from bidir_core.models import LoadedModel
from bidir_core.progress import LOG, logging_to
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, parse_regime
from bidir_core.run_layout import stage_dir_for
from bidir_core.run_writer import RunWriter
from bidir_core.store import Run, find_run
from bidir_core.training import checkpoints
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.data import TrainingData, prepare_data
from bidir_core.training.loop import Counters, Trainer
from bidir_core.training.losses import passes
from bidir_core.training.packing import Packer
from bidir_core.training.quick_eval import QuickEval
from bidir_core.training.sources import check_data
from bidir_core.training.student import Student, add_lora, frozen_copy
from bidir_core.training.train_probe import run_training_probe

FINAL = "final"
MICRO_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}


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
    run = find_run(reference, roots=[runs_dir] if runs_dir else None)
    if run.config.get("kind") != "finetune":
        raise UserError(f"the run '{run.id}' is not a fine-tune; resume it with its own command")
    config = from_json(FinetuneConfig, run.settings)
    changed = changed_identity(config, given)
    if changed:
        raise UserError(
            f"cannot resume '{run.id}' with {', '.join(changed)}: that is another run; leave the "
            "flag out, or start a new run without --resume"
        )
    if run.state == "done":
        return run.path
    runtime = {name: value for name, value in given.items() if name not in ("runs_dir", "name")}
    return _finetune(from_json(FinetuneConfig, {**to_json(config), **runtime}), run=run)


def _finetune(
    config: FinetuneConfig, *, run: Run | None = None, folder: Path | None = None
) -> Path:
    regime = parse_regime(config.regime or "causal")
    check_data(config.data)
    accelerator = _accelerator(config)
    loaded = models.load(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        attn=config.attn,
        regime=regime,
    )
    data = prepare_data(config, loaded.tokenizer, loaded.max_length)
    facts = _facts(config, loaded, data)
    if run is not None:
        _check_same(run, facts)
    _set_seed(config.seed)
    base = frozen_copy(Student(loaded.model, loaded.handle)) if config.needs_base else None
    student = make_trainable(config, loaded)
    writer = None
    if accelerator.is_main_process:
        writer = (
            RunWriter.resume(run)
            if run is not None
            else RunWriter.create(
                stage_dir_for("finetune", objective=config.objective),
                to_json(config),
                root=config.runs_dir,
                name=config.name,
                folder=folder,
                **facts,
            )
        )
    if writer is None:
        _train(config, student, base, data, loaded, accelerator, None, run)
        return run.path if run is not None else Path()
    with writer, logging_to(writer.path / "log.txt"):
        LOG.info("%s, %s under %s -> %s", config.model, config.objective, regime, writer.id)
        if config.goal.leaky:
            LOG.warning("3A is leaky: its responses are visible to where they are predicted from")
        _write_data_report(writer.path, data)
        counters = _train(config, student, base, data, loaded, accelerator, writer, run)
        save_final(writer.path, config, student, loaded, data, counters)
        metrics = _metrics(config, student, counters)
        metrics["final_bytes"] = sum(
            file.stat().st_size for file in (writer.path / FINAL).iterdir()
        )
        writer.finish(cost=_cost(counters, loaded), metrics=metrics)
        checkpoints.remove_all(writer.path)
    return writer.path


def _train(
    config: FinetuneConfig,
    student: Student,
    base: Student | None,
    data: TrainingData,
    loaded: LoadedModel,
    accelerator: Any,
    writer: RunWriter | None,
    run: Run | None,
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
    )
    student.model.train()
    first = packer.step(0).batches
    if first:
        batch = first[0].to(loaded.device)
        student.check_head(batch, regime)
        probe = run_training_probe(student, batch, regime, leaky=config.goal.leaky)
        if writer is not None:
            writer.write_probe(probe.to_json())
        probe.require()
    trainer = Trainer(
        config,
        student,
        packer,
        passes(config.goal, regime, config.causal_anchor),
        base=base,
        accelerator=accelerator,
        folder=writer.path if writer is not None else None,
        heartbeat=writer.heartbeat if writer is not None else None,
        quick_eval=_quick_eval(config, student, loaded) if writer is not None else None,
    )
    if writer is not None:
        _check_room(writer.path, trainer)
        if config.tracker != "none":
            accelerator.init_trackers("bidir", config=_flat(config))
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
        for part in (text_decoder(model), model.get_output_embeddings()):
            part.requires_grad_(True)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.method == "lora":
            model.enable_input_require_grads()
    return Student(model, handle)


def save_final(
    run: Path,
    config: FinetuneConfig,
    student: Student,
    loaded: LoadedModel,
    data: TrainingData,
    counters: Counters,
) -> Path:
    """Write ``final/``: safetensors or the adapter, the tokenizer, and ``bidir.json``."""
    final, temporary = run / FINAL, run / f".{FINAL}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        student.model.eval()
        student.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        write_json(
            temporary / "bidir.json",
            {
                "schema": 1,
                "objective": config.objective,
                "what": config.goal.what,
                "leaky": config.goal.leaky,
                "regime": config.regime,
                "causal_anchor": config.causal_anchor,
                "method": config.method,
                "base_model": config.model,
                "base_revision": loaded.revision,
                "base_fingerprint": loaded.fingerprint,
                "data": config.data,
                "data_fingerprint": data.fingerprint,
                "trained_tasks": sorted(data.report["tasks"]),
                "chat_template": config.chat_template,
                "bos_added": data.encoded.bos_added,
                "seed": config.seed,
                "steps": counters.step,
                "tokens": counters.tokens,
                "run": f"{run.parent.name}/{run.name}",
            },
        )
        checkpoints._sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(run)
    except OSError as error:
        raise UserError(
            f"the final weights could not be written to {final} ({error.strerror or error}); free "
            "some room and resume the run"
        ) from error
    return final


def _accelerator(config: FinetuneConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    trackers = [config.tracker] if config.tracker != "none" else []
    if trackers and config.tracker not in {str(name) for name in get_available_trackers()}:
        raise UserError(
            f"--tracker {config.tracker}: that package is not installed; "
            f"pip install {config.tracker}"
        )
    root = Path(config.runs_dir or "runs") / ".trackers"
    return Accelerator(
        cpu=config.device == "cpu",
        log_with=trackers or None,  # type: ignore[arg-type]
        project_dir=str(root) if trackers else None,
    )


def _quick_eval(config: FinetuneConfig, student: Student, loaded: LoadedModel) -> Any:
    if not config.eval_every:
        return None
    quick = QuickEval.on_benchmarks(
        config.eval_items,
        tokenizer=loaded.tokenizer,
        chat_template=config.chat_template,
        device=loaded.device,
    )
    trained = parse_regime(config.regime or "causal")
    regimes = (BIDIRECTIONAL if trained.is_causal else trained, CAUSAL)

    def run() -> dict[str, Any]:
        return {str(one): quick.run(student.model, student.handle, one) for one in regimes}

    return run


def _facts(config: FinetuneConfig, loaded: LoadedModel, data: TrainingData) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "model_fingerprint": loaded.fingerprint,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "data_fingerprint": data.fingerprint,
        "bos_added": data.encoded.bos_added,
        "dtype": loaded.dtype,
        "attention": loaded.implementation,
        "device": str(loaded.device),
        "leaky": config.goal.leaky,
        "training_data": data.report,
    }


def _check_same(run: Run, facts: Mapping[str, Any]) -> None:
    for key, what in (
        ("model_fingerprint", "the model"),
        ("data_fingerprint", "the training data"),
        ("dtype", "the dtype"),
    ):
        if run.config.get(key) != facts[key]:
            raise UserError(
                f"cannot resume '{run.id}': {what} changed since it was started; start a new run "
                "without --resume"
            )


def _write_data_report(run: Path, data: TrainingData) -> None:
    """``data.json``: counts, and every sample that was dropped with the item it resembles."""
    write_json(
        run / "data.json",
        {"schema": 1, **data.report, "dropped": [entry._asdict() for entry in data.dropped]},
    )


def _check_room(run: Path, trainer: Trainer) -> None:
    """Refuse now rather than at the first checkpoint: two of those and the final weights."""
    weights = sum(master.numel() for master in trainer.optimizer.masters)
    needed = weights * (2 * 12 + 4)
    free = shutil.disk_usage(run).free
    if free < needed:
        raise UserError(
            f"the run needs about {needed / 1e9:.1f} GB for checkpoints in {run}, which has "
            f"{free / 1e9:.1f} GB; free some room or give another --runs-dir"
        )


def _metrics(config: FinetuneConfig, student: Student, counters: Counters) -> dict[str, Any]:
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    return {
        "objective": config.objective,
        "leaky": config.goal.leaky,
        "method": config.method,
        "steps": counters.step,
        "tokens": counters.tokens,
        "loss_tokens": counters.loss_tokens,
        "padding": round(1 - counters.tokens / max(1, counters.slots), 4),
        "trained_parameters": trained,
        **{f"final_{name}": value for name, value in counters.last.items()},
    }


def _cost(counters: Counters, loaded: LoadedModel) -> dict[str, Any]:
    cuda = loaded.device.type == "cuda"
    return {
        "seconds": round(counters.seconds, 3),
        "computed_tokens": counters.slots,
        "tokens_per_second": round(counters.tokens / max(counters.seconds, 1e-9), 1),
        "device": torch.cuda.get_device_name(loaded.device) if cuda else "cpu",
        "peak_bytes": torch.cuda.max_memory_allocated(loaded.device) if cuda else None,
    }


def _set_seed(seed: int) -> None:
    from accelerate.utils import set_seed

    set_seed(seed)


def _flat(config: FinetuneConfig) -> dict[str, Any]:
    return json.loads(json.dumps({k: str(v) for k, v in asdict(replace(config)).items()}))
