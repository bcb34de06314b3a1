"""``final/``: the trained checkpoint, whole or absent, and how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from bidir_core.atomic import sync_folder, write_json
from bidir_core.errors import UserError
from bidir_core.models import LoadedModel
from bidir_core.training.checkpoints import sync_files
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.data import TrainingData
from bidir_core.training.loop import Counters
from bidir_core.training.student import Student
from bidir_core.weights import is_scale, read_tensors

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
        with _no_bars():
            student.model.save_pretrained(temporary, state_dict=weights)
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


def check_saved(folder: Path, meant: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError if a file holds numbers of a kind that the model has none of, or scales.

    transformers converts while it saves. A model that was read from 8 bits and went back to them
    would be read as other numbers, and nothing would tell.
    """
    kinds = {tensor.dtype for tensor in meant.values()}
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in read_tensors(file):
            number = tensor.dtype.startswith(("F", "BF"))
            if is_scale(tensor.name) or (number and STORED.get(tensor.dtype) not in kinds):
                raise UserError(
                    f"the final weights were not kept: transformers wrote {tensor.name} as "
                    f"{tensor.dtype}, which is not what the model has there; install the version "
                    "of transformers in requirements.txt and resume the run"
                )


@contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
