"""Continue a prompt that was read under a regime.

The prompt is the prefix: it runs once, under the regime, and leaves its keys and values in a
cache. Every further token is a continuation token, causal in every regime, so decoding needs no
more than that cache: it equals computing the whole sequence again for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from transformers import DynamicCache

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.models.attention import rope_switch
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import ProbeReport
from bidir_core.regimes import Regime, parse_regime

TOP = 10
Stopped = Literal["end of text", "length"]
END_TEXTS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # as in llama.cpp


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 takes the most likely one (greedy).

    ``top_p`` keeps the most likely tokens that together hold this probability. The same ``seed``
    draws the same random numbers under every regime: equal distributions give equal texts.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(
                f"--max-new-tokens {self.max_new_tokens}: give a number of tokens from 1 up"
            )
        if not 0 <= self.temperature <= 100:
            raise UserError(f"--temperature {self.temperature}: give a number from 0 (greedy) up")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: give a number above 0 and up to 1")
        if self.temperature == 0 and self.top_p != 1:
            raise UserError(
                f"--top-p {self.top_p}: without a --temperature above 0 nothing is drawn; give one"
            )
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"--seed {self.seed}: give a whole number from 0 up")


class Candidate(NamedTuple):
    """A possible next token. ``logprob``: natural log, of the model's own distribution."""

    token_id: int
    text: str
    logprob: float


class Step(NamedTuple):
    """One generated token, and the most likely ones at its place (best first)."""

    chosen: Candidate
    top: tuple[Candidate, ...]


@dataclass(frozen=True)
class Generation:
    """What one regime made of the prompt. ``steps[0].top``: the first next-token distribution."""

    regime: Regime
    steps: tuple[Step, ...]
    text: str
    stopped: Stopped

    @property
    def token_ids(self) -> list[int]:
        return [step.chosen.token_id for step in self.steps]

    def to_json(self) -> dict[str, Any]:
        """The first distribution, the text, and every step."""
        steps = [
            {**_row(step.chosen), "top": [_row(candidate) for candidate in step.top]}
            for step in self.steps
        ]
        return {
            "regime": str(self.regime),
            "next": steps[0]["top"],
            "continuation": self.text,
            "token_ids": self.token_ids,
            "stopped": self.stopped,
            "steps": steps,
        }


def _row(candidate: Candidate) -> dict[str, Any]:
    return {
        "token_id": candidate.token_id,
        "token": candidate.text,
        "logprob": round(candidate.logprob, 6),
    }


class Prompt(NamedTuple):
    """A prompt as the model reads it: ``text`` may be wrapped in a chat template."""

    text: str
    ids: list[int]


def encode_prompt(
    loaded: LoadedModel, text: str, *, bos: str = "auto", chat_template: bool = False
) -> Prompt:
    """Tokenise a prompt as evaluations tokenise a context, but leave its end as it stands."""
    wrapped, tokens = Encoder.of(loaded, bos=bos, chat_template=chat_template).encode_prompt(text)
    if not len(tokens):
        raise UserError("--prompt is empty; write some text to go on from")
    return Prompt(wrapped, tokens.ids.tolist())


def generate(
    loaded: LoadedModel,
    prompt_ids: Sequence[int],
    regime: Regime | str,
    sampling: Sampling | None = None,
) -> Generation:
    """Continue ``prompt_ids``, read under ``regime``. Raises UserError before computing."""
    sampling = sampling or Sampling()
    steps = tuple(stream(loaded, prompt_ids, regime, sampling))
    ended = steps[-1].chosen.token_id in end_ids(loaded)
    ids = [step.chosen.token_id for step in steps]
    text = loaded.tokenizer.decode(ids[:-1] if ended else ids)
    return Generation(parse_regime(regime), steps, text, "end of text" if ended else "length")


def stream(
    loaded: LoadedModel,
    prompt_ids: Sequence[int],
    regime: Regime | str,
    sampling: Sampling,
) -> Iterator[Step]:
    """Token by token what :func:`generate` returns at once; ends behind an end-of-text token."""
    regime = check(loaded, prompt_ids, regime, sampling)
    ends = end_ids(loaded)
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt_ids)
    cache = _empty_cache(loaded)
    switch = rope_switch(loaded.model.config)
    for _ in range(sampling.max_new_tokens):
        if switch is not None and len(ids) == switch + 1:
            cache = _empty_cache(loaded)  # what it held was read with other rotary frequencies
        logits = _last_logits(loaded, ids, len(prompt_ids), regime, cache)
        step = _choose(loaded, logits, sampling, generator)
        yield step
        if step.chosen.token_id in ends:
            return
        ids.append(step.chosen.token_id)


def _empty_cache(loaded: LoadedModel) -> DynamicCache:
    """In sliding-window layers it drops what no later token can see."""
    return DynamicCache(config=loaded.model.config.get_text_config())


def check(
    loaded: LoadedModel, prompt_ids: Sequence[int], regime: Regime | str, sampling: Sampling
) -> Regime:
    """Refuse what the model cannot do; return the parsed regime."""
    regime = parse_regime(regime)
    regime.check_layers(loaded.n_layers)
    needed = len(prompt_ids) + sampling.max_new_tokens - 1
    if needed > loaded.max_length:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens and {sampling.max_new_tokens} are to follow, "
            f"but the model's window holds {loaded.max_length}; shorten one of them"
        )
    return regime


def end_ids(loaded: LoadedModel) -> set[int]:
    """The tokens that end a text: the tokenizer's, those the model's authors list (a converted model
    has no such list), and those of :data:`END_TEXTS`."""
    listed = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    token_ids = {*(listed if isinstance(listed, list) else [listed]), loaded.tokenizer.eos_token_id}
    added = loaded.tokenizer.get_added_vocab()
    return {*token_ids - {None}, *(added[text] for text in END_TEXTS if text in added)}


@torch.inference_mode()
def _last_logits(
    loaded: LoadedModel, ids: list[int], n_prefix: int, regime: Regime, cache: DynamicCache
) -> torch.Tensor:
    """Logits behind the last token, float32 on the CPU. Runs only what the cache lacks."""
    begin = cache.get_seq_length()
    layout = Layout.pack([(n_prefix, len(ids))]).to(loaded.device)
    with loaded.handle.use(regime, layout):
        logits = loaded.model(
            input_ids=torch.tensor([ids[begin:]], device=loaded.device),
            position_ids=layout.position[:, begin:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    return logits[0, -1].float().cpu()


def _choose(
    loaded: LoadedModel, logits: torch.Tensor, sampling: Sampling, generator: torch.Generator
) -> Step:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(TOP, len(logprobs)))
    top = tuple(
        _candidate(loaded, logprobs, token)
        for token in best.indices.tolist()
        if logits[token] > -1e30
    )
    if sampling.temperature == 0:
        return Step(top[0], top)
    # The best logit is subtracted first: divided by a tiny temperature, it would overflow.
    probs = ((logits - logits.max()) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, index = probs.sort(descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first is always kept
        probs[index[outside]] = 0
    # The token with the smallest exponential clock / prob is a draw from probs. Every regime gets
    # the same clocks, so that draws differ only where probabilities do.
    clocks = torch.empty_like(probs).exponential_(generator=generator)
    return Step(_candidate(loaded, logprobs, int((probs / clocks).argmax())), top)


def _candidate(loaded: LoadedModel, logprobs: torch.Tensor, token: int) -> Candidate:
    return Candidate(token, loaded.tokenizer.decode([token]), float(logprobs[token]))


def to_json(
    loaded: LoadedModel,
    prompt: Prompt,
    sampling: Sampling,
    generations: Sequence[Generation],
    probes: Sequence[ProbeReport],
) -> dict[str, Any]:
    """What the command prints with ``--json``. ``probes``: of each generation's regime."""
    return {
        "schema": 1,
        "model": loaded.name,
        "checkpoint": loaded.checkpoint,
        "model_fingerprint": loaded.fingerprint,
        "dtype": loaded.dtype,
        "device": str(loaded.device),
        "prompt": prompt.text,
        "prompt_token_ids": prompt.ids,
        "sampling": asdict(sampling),
        "regimes": [
            {**generation.to_json(), "probe": probe.to_json()}
            for generation, probe in zip(generations, probes, strict=True)
        ],
    }
