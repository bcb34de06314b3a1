"""From a name to token ids: read, decontaminate, encode, and say what was left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import CHAT_DATE, ChatTemplate, chat_template_of
from bidir_core.data.items import Item
from bidir_core.data.source import load_hub
from bidir_core.data.tasks import PUBLISHED_TASKS, load_items
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.mixtures import (
    MIXTURES,
    Dropped,
    EvaluationText,
    Sample,
    decontaminate,
    read_mixture,
    without_duplicates,
)
from bidir_core.train.packing import EncodedSamples, encode_samples
from bidir_core.train.rows import Columns, Messages, read_rows, texts_of, trained_turns


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

    def summary(self) -> str:
        """One line: how many samples are trained on, and what became of the others."""
        report = self.report
        parts = [
            f"{report['n_used']:,} of {report['n_read'] + report['n_repeated']:,} samples used"
        ]
        for key, label in (
            ("n_repeated", "repeat another"),
            ("n_dropped_contaminated", "share text with evaluation items"),
            ("n_dropped_long", "are too long for --max-tokens"),
            ("n_dropped_empty", "have an empty side"),
            ("n_truncated", "of those used lost the beginning of their prompt"),
        ):
            if report[key]:
                parts.append(f"{report[key]:,} {label}")
        return ", ".join(parts)


def prepare_data(
    config: FinetuneConfig, tokenizer: Any, max_length: int, rope_switch: int | None = None
) -> TrainingData:
    """Everything between ``--data`` and the first batch. Raises UserError on bad input.

    ``rope_switch``: see :func:`bidir_core.models.attention.rope_switch`.
    """
    if config.max_tokens > max_length:
        raise UserError(
            f"--max-tokens {config.max_tokens}: the model's window holds {max_length}; give at most that"
        )
    if config.data in MIXTURES and not config.chat_template:
        samples, clean, dropped = _embedded(config.data, config.decontaminate)
        n_repeated = 0
    else:
        columns = Columns(config.prompt_column, config.response_column, config.messages_column)
        all_samples = read_samples(
            config.data, columns, tokenizer, config.chat_template, config.assistant_turns
        )
        samples = without_duplicates(all_samples)
        n_repeated = len(all_samples) - len(samples)
        clean, dropped = _clean(samples, config.data, config.decontaminate)
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
    if rope_switch is not None and (encoded.n_total > rope_switch).any():
        raise UserError(
            f"--max-tokens {config.max_tokens}: beyond {rope_switch} tokens this model takes other "
            "rotary frequencies, for short samples too that share a batch with a long one; give at "
            f"most {rope_switch}"
        )
    used = [clean[index] for index in encoded.source.tolist()]
    report = _report(config, samples, used, encoded, dropped) | {"n_repeated": n_repeated}
    return TrainingData(encoded, dropped, report)


@lru_cache(maxsize=2)
def _embedded(data: str, drop: bool) -> tuple[list[Sample], list[Sample], list[Dropped]]:
    """An embedded mixture, kept in memory: several fine-tunes of one process read it once."""
    samples = read_samples(data, Columns(), None, False)
    return samples, *_clean(samples, data, drop)


def _clean(samples: list[Sample], data: str, drop: bool) -> tuple[list[Sample], list[Dropped]]:
    if not drop:
        return samples, []
    # These two hold all order tasks' documents.
    order_tasks = ("sciq_first", "boolq_first") if data == "farther" else ()
    return decontaminate(samples, evaluation_texts(load_items([*PUBLISHED_TASKS, *order_tasks])))


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
        **({"chat_date": CHAT_DATE} if config.chat_template else {}),
    }


# Where training samples come from: an embedded mixture, a JSONL file, or a hub dataset.

HUB = "hub:"


def check_data(data: str) -> None:
    """Raise UserError, before anything is loaded, if ``data`` names nothing that can be read."""
    if data in MIXTURES or (data.startswith(HUB) and len(data) > len(HUB)):
        return
    if not Path(data).expanduser().is_file():
        raise UserError(
            f"--data {data}: there is no such file; give {', '.join(MIXTURES)}, "
            "a JSONL file, or hub:OWNER/NAME"
        )


def read_samples(
    data: str, columns: Columns, tokenizer: Any, chat_template: bool, turns: str = "last"
) -> list[Sample]:
    """All samples of ``data``, in order, repeated ones too; texts only, nothing tokenised.

    ``chat_template`` puts prompts and responses into the tokenizer's own chat format; of a
    conversation, the ``last`` or ``all`` of the assistant's ``turns`` are responses, each to
    everything before it.
    """
    chat = chat_template_of(tokenizer) if chat_template else None
    if data in MIXTURES:
        from bidir_core.data import assets, fetch

        fetch.ensure("eval-data")
        samples = read_mixture(data, assets.mixture_dir())  # type: ignore[arg-type]
        return samples if chat is None else [_as_chat(sample, chat) for sample in samples]
    rows = _hub_rows(data) if data.startswith(HUB) else read_rows(Path(data).expanduser())
    name = data if data.startswith(HUB) else Path(data).name
    samples = []
    for where, row in rows:
        texts = texts_of(row, columns, where)
        if isinstance(texts, list):
            if chat is None:
                raise UserError(f"{where}: a conversation needs --chat-template")
            for index in trained_turns(texts, turns, where):
                turns_so_far = texts[: index + 1]
                plain = "\n".join(turn["content"] for turn in turns_so_far)
                prompt, response = _rendered(turns_so_far, where, chat)
                samples.append(Sample(prompt, response, name, len(samples), plain))
            continue
        prompt, response = texts
        sample = Sample(prompt, response, name, len(samples))
        if chat is not None:
            sample = _as_chat(sample, chat)
        elif not prompt[-1].isspace() and not response[0].isspace():
            # as the evaluation tasks join context and choice
            sample = replace(sample, response=" " + response)
        samples.append(sample)
    if not samples:
        raise UserError(f"--data {data}: it holds no samples")
    return samples


def _hub_rows(data: str) -> Iterator[tuple[str, Any]]:
    name, _, remainder = data.removeprefix(HUB).partition("@")
    config, _, split = remainder.partition(":")
    rows = load_hub(name, config or None, split or "train", f"--data {data}", "give a JSONL file")
    for number, row in enumerate(rows):
        yield f"{data}, row {number}", row


def _rendered(messages: Messages, where: str, chat: ChatTemplate) -> tuple[str, str]:
    """The template's text up to the last message, and that message as the template writes it."""
    try:
        prompt = chat.render(messages[:-1])
        full_text = chat.render(messages, prompt=False)
    except Exception as error:  # templates raise jinja errors of their own making
        raise UserError(f"{where}: the chat template refuses it: {error}") from None
    if full_text.startswith(prompt):
        response = full_text[len(prompt) :]
    else:  # a template that writes the last turn otherwise than it announces it
        response = messages[-1]["content"]
    if not response.strip():
        raise UserError(f"{where}: the assistant's message is empty")
    eos = chat.tokenizer.eos_token
    if eos and response.rstrip().endswith(eos):
        response = response.rstrip()  # generation stops there: a line break behind is never made
    return prompt, response


def _as_chat(sample: Sample, chat: ChatTemplate) -> Sample:
    messages = [
        {"role": "user", "content": sample.prompt},
        {"role": "assistant", "content": sample.response.strip()},
    ]
    prompt, response = _rendered(messages, f"{sample.task} {sample.index}", chat)
    return replace(sample, prompt=prompt, response=response, plain=sample.text)
