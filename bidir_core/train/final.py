"""``final/``: the trained checkpoint, whole or absent, and how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig

from bidir_core.common.errors import UserError
from bidir_core.common.files import sync_files, sync_folder, write_json
from bidir_core.common.process import launched
from bidir_core.models.devices import device_name, peak_memory_bytes
from bidir_core.models.loading import LoadedModel
from bidir_core.models.source import quiet
from bidir_core.models.weight_files import checksums, is_scale, read_tensors
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.data import TrainingData
from bidir_core.train.loop import Counters, Trainer
from bidir_core.train.student import Student

FINAL = "final"

STORED = {  # what safetensors calls the kinds of numbers that are trained here
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def save_final(
    run: Path,
    config: FinetuneConfig,
    student: Student,
    loaded: LoadedModel,
    data: TrainingData,
    counters: Counters,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write ``final/``: safetensors or the adapter, the tokenizer, and ``bidir.json``.

    ``weights``: the model's, where it does not hold them whole itself.
    """
    final, temporary = run / FINAL, run / f".{FINAL}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        student.model.eval()
        _save_model(student.model, temporary, weights)
        check_saved(temporary, weights if weights is not None else student.model.state_dict())
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
                "checksums": checksums(temporary),
            },
        )
        sync_files(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(run)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the final weights could not be written to {final} ({getattr(error, 'strerror', None) or error}); free "
            "some room and resume the run"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _save_model(model: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None) -> None:
    """Write the model; its generation settings as they came with the base.

    transformers reads settings that contradict each other (a temperature beside ``do_sample:
    false``) and then refuses to write them. Training has not touched them.
    """
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        model.generation_config = GenerationConfig()
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=weights)
    finally:
        if generation is not None:
            model.generation_config = generation
    file = folder / "generation_config.json"
    if generation is not None and file.is_file():
        generation.to_json_file(file, keys_to_pop=["compile_config"])


def check_saved(folder: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError if a file holds numbers of a kind that the model has none of, or scales.

    transformers converts while it saves. A model that was read from 8 bits and went back to them
    would be read as other numbers, and nothing would tell.
    """
    dtypes = {tensor.dtype for tensor in expected.values()}
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in read_tensors(file):
            is_number = tensor.dtype.startswith(("F", "BF"))
            if is_scale(tensor.name) or (is_number and STORED.get(tensor.dtype) not in dtypes):
                raise UserError(
                    f"the final weights were not kept: transformers wrote {tensor.name} as "
                    f"{tensor.dtype}, which is not what the model has there; install the version "
                    "of transformers in requirements.txt and resume the run"
                )


# What a fine-tune's run folder says about it.


def facts_of(config: FinetuneConfig, loaded: LoadedModel, data: TrainingData) -> dict[str, Any]:
    """What ``config.json`` says beside the settings."""
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


def write_data_report(run: Path, data: TrainingData) -> None:
    """``data.json``: counts, and every sample that was dropped with the item it resembles."""
    write_json(
        run / "data.json",
        {"schema": 1, **data.report, "dropped": [asdict(entry) for entry in data.dropped]},
    )


def check_room(run: Path, trainer: Trainer) -> None:
    """Refuse now rather than at the first checkpoint: two of those and the final weights.

    Without checkpoints there is still one if the run is stopped.
    """
    weights = sum(master.numel() for master in trainer.optimizer.masters)
    checkpoints = 2 if trainer.config.checkpoint_every else 1
    needed = weights * (checkpoints * 12 + 4)
    free = shutil.disk_usage(run).free
    if free < needed:
        raise UserError(
            f"the run needs about {needed / 1e9:.1f} GB for checkpoints in {run}, which has "
            f"{free / 1e9:.1f} GB; free some room or give another --runs-dir"
        )


def metrics_of(
    config: FinetuneConfig, student: Student, counters: Counters, final: Path
) -> dict[str, Any]:
    """What ``metrics.json`` says of a fine-tune."""
    n_trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    return {
        "objective": config.objective,
        "leaky": config.goal.leaky,
        "method": config.method,
        "steps": counters.step,
        "tokens": counters.tokens,
        "loss_tokens": counters.loss_tokens,
        "padding": round(1 - counters.tokens / max(1, counters.slots), 4),
        "trained_parameters": n_trained,
        "weight_bytes": sum(file.stat().st_size for file in final.glob("*.safetensors")),
        **{f"final_{name}": value for name, value in counters.last.items()},
    }


def cost(counters: Counters, loaded: LoadedModel) -> dict[str, Any]:
    peak = peak_memory_bytes(loaded.device)
    return {
        "seconds": round(counters.seconds, 3),
        "computed_tokens": counters.slots,
        "tokens_per_second": round(counters.tokens / max(counters.seconds, 1e-9), 1),
        "device": device_name(loaded.device),
        "peak_bytes": peak.get("device"),
        "peak_memory_bytes": peak,
        **({"processes": launched()} if launched() > 1 else {}),
    }
