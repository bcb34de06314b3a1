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

FINAL = "final"


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
    return final


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
