"""From a name to token ids: read, decontaminate, encode, and say what was left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from bidir_core.config import PUBLISHED_TASKS
from bidir_core.errors import UserError
from bidir_core.items import Item
from bidir_core.tasks import load_items
from bidir_core.training.config import FinetuneConfig
from bidir_core.training.decontaminate import Dropped, EvaluationText, decontaminate
from bidir_core.training.encode import EncodedSamples, encode_samples
from bidir_core.training.mixtures import MIXTURES, Sample
from bidir_core.training.sources import Columns, read_samples


@dataclass(frozen=True)
class TrainingData:
    """Encoded samples, what was dropped and why, and what a run records about it."""

    encoded: EncodedSamples
    dropped: list[Dropped]
    report: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the token ids and the prompt lengths: two runs trained on the same data."""
        digest = hashlib.sha256()
        for array in (self.encoded.ids, self.encoded.n_prompt, self.encoded.n_total):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def prepare_data(config: FinetuneConfig, tokenizer: Any, max_length: int) -> TrainingData:
    """Everything between ``--data`` and the first batch. Raises UserError on bad input."""
    if config.max_tokens > max_length:
        raise UserError(
            f"--max-tokens {config.max_tokens}: the model's window holds {max_length}; give at most that"
        )
    if config.data in MIXTURES and not config.chat_template:
        samples, clean, dropped = _embedded(config.data, config.decontaminate)
    else:
        columns = Columns(config.prompt_column, config.response_column, config.messages_column)
        samples = read_samples(config.data, columns, tokenizer, config.chat_template)
        clean, dropped = _clean(samples, config.decontaminate)
    if not clean:
        raise UserError(
            f"--data {config.data}: every sample shares text with an evaluation item; "
            "give other data"
        )
    encoded = encode_samples(
        clean,
        tokenizer,
        max_tokens=config.max_tokens,
        over_long=config.over_long,  # type: ignore[arg-type]
        append_eos=config.append_eos,
    )
    used = [clean[index] for index in encoded.source.tolist()]
    return TrainingData(encoded, dropped, _report(config, samples, used, encoded, dropped))


@lru_cache(maxsize=2)
def _embedded(data: str, drop: bool) -> tuple[list[Sample], list[Sample], list[Dropped]]:
    """An embedded mixture, kept in memory: several fine-tunes of one process read it once."""
    samples = read_samples(data, Columns(), None, False)
    return samples, *_clean(samples, drop)


def _clean(samples: list[Sample], drop: bool) -> tuple[list[Sample], list[Dropped]]:
    if not drop:
        return samples, []
    return decontaminate(samples, evaluation_texts(load_items(PUBLISHED_TASKS)))


def evaluation_texts(items: Sequence[Item]) -> list[EvaluationText]:
    """Each item's context with each of its choices."""
    return [
        EvaluationText(item.task, item.doc_id, item.context(choice) + continuation)
        for item in items
        for choice, continuation in enumerate(item.continuations)
    ]


def _report(
    config: FinetuneConfig,
    samples: Sequence[Sample],
    used: Sequence[Sample],
    encoded: EncodedSamples,
    dropped: Sequence[Dropped],
) -> dict[str, Any]:
    return {
        "data": config.data,
        "embedded": config.data in MIXTURES,
        "tasks": dict(sorted(Counter(sample.task for sample in used).items())),
        "n_read": len(samples),
        "n_used": len(encoded),
        "n_dropped_contaminated": len(dropped),
        "n_dropped_long": encoded.n_dropped_long,
        "n_dropped_empty": encoded.n_dropped_empty,
        "n_truncated": encoded.n_truncated,
        "n_boundary_merges": encoded.n_boundary_merges,
        "n_prompt_tokens": int(encoded.n_prompt.sum()),
        "n_response_tokens": int((encoded.n_total - encoded.n_prompt).sum()),
        "bos_added": encoded.bos_added,
        "eos_appended": config.append_eos,
        "decontaminated": config.decontaminate,
    }
