"""What a fine-tune's run folder says about it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bidir_core.atomic import write_json
from bidir_core.devices import device_name, peak_memory_bytes
from bidir_core.errors import UserError
from bidir_core.launched import launched
from bidir_core.models import LoadedModel
from bidir_core.store import Run
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.data import TrainingData
from bidir_core.training.loop import Counters, Trainer
from bidir_core.training.student import Student


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


def check_same(run: Run, facts: Mapping[str, Any]) -> None:
    """Raise UserError if a resumed run would go on with another model or other data."""
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
        "weight_bytes": sum(file.stat().st_size for file in final.glob("*.safetensors")),
        **{f"final_{name}": value for name, value in counters.last.items()},
    }


def cost(counters: Counters, loaded: LoadedModel) -> dict[str, Any]:
    """What it took."""
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
