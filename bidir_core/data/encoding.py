"""Text to tokens: where the prefix ends and the continuation begins, as lm-eval decides it.

lm-eval (0.4.13, ``TemplateLM._encode_pair``) tokenises the context alone and context plus
continuation together, and cuts the second at the length of the first. White space that ends the
context moves to the continuation. An empty context becomes one token, BOS or else EOS.

That boundary matters more here than elsewhere: it is where bidirectional attention ends.

A chat template wraps contexts first. It is a program of the model's authors, and two things go wrong
without an error: one that walks over a message's parts finds none in a plain text and writes nothing,
and one that prints the date writes another prompt every day.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from bidir_core.common.errors import UserError
from bidir_core.common.progress import TEMPLATE_SECONDS, time_limit
from bidir_core.data.items import Item

# Chat templates, with nothing lost on the way.

CHAT_DATE = "2024-07-26"
"""What templates are told of the date, in every run, so that prompts do not change with the day.

The one that Llama 3's own template falls back to. A run records it.
"""

_MARKER = "Is this text kept"


@contextmanager
def template_errors() -> Iterator[None]:
    """What a template raises, as one sentence."""
    try:
        yield
    except Exception as error:  # a template is a program of the model's authors
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--chat-template: this tokenizer's template cannot be used ({message}); leave it out"
        ) from error


def chat_template_of(tokenizer: Any, chat_date: str = CHAT_DATE) -> ChatTemplate:
    """The tokenizer's own template; `UserError` if it has none that can be used."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("--chat-template: this tokenizer has no chat template; leave it out")
    with template_errors():
        return ChatTemplate(tokenizer, chat_date)


class ChatTemplate:
    """Renders conversations; each message has a ``role`` and a ``content``, both texts.

    A template that keeps nothing of a plain text gets the parts that it walks over instead.
    """

    def __init__(self, tokenizer: Any, chat_date: str = CHAT_DATE):
        self.tokenizer = tokenizer
        self.date = date.fromisoformat(chat_date)
        self.takes_parts = False
        question = [{"role": "user", "content": _MARKER}]
        try:
            with time_limit(TEMPLATE_SECONDS, "it"):
                kept = _holds(self._apply(question, True), _MARKER)
        except UserError:
            raise
        except Exception:  # some templates say that they want parts by raising an error
            kept = False
        if not kept:
            self.takes_parts = True
            self.render(question)

    def render(self, messages: Sequence[Mapping[str, str]], *, prompt: bool = True) -> str:
        """The conversation as one text; a ``prompt`` ends where the assistant is to speak.

        Raises ValueError if the text of a message is not in it, other than one that the assistant
        gave earlier (templates leave its reasoning out), and whatever the template raises.
        """
        with time_limit(TEMPLATE_SECONDS, "it"):
            text = self._apply(messages, prompt)
        for number, message in enumerate(messages, start=1):
            earlier = message["role"] == "assistant" and number < len(messages)
            if not earlier and not _holds(text, message["content"]):
                raise ValueError(
                    f"it leaves out the text of message {number} of {len(messages)} "
                    f"({message['role']}'s)"
                )
        return text

    def _apply(self, messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
        if self.takes_parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"]}]}  # type: ignore[dict-item]
                for message in messages
            ]
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            strftime_now=self.date.strftime,
        )


def _holds(text: str, part: str) -> bool:
    """Whether ``text`` holds ``part``, white space aside, which templates trim."""
    return "".join(part.split()) in "".join(text.split())


# Where the prefix ends and the continuation begins.

Bos = Literal["auto", "add", "none"]


class Tokens:
    """Token ids ``[n]`` (int64) and their character ranges ``[n, 2]`` in the text they came from.

    A continuation's offsets count from the continuation's own first character, so the white
    space that it took over from the context lies at negative offsets.
    """

    __slots__ = ("_offsets", "ids")

    def __init__(self, ids: np.ndarray, offsets: np.ndarray | Place):
        self.ids = ids
        self._offsets = offsets

    @property
    def offsets(self) -> np.ndarray:
        """Made when first asked for, by tokenising all texts again; most runs never ask."""
        if isinstance(self._offsets, Place):
            texts, start, end, characters = self._offsets
            return texts.offsets[start:end].astype(np.int64) - characters
        return self._offsets

    def __len__(self) -> int:
        return len(self.ids)


class _Texts:
    """Texts that are tokenised together.

    ``tail``: how many tokens are cut off each end; ``front``: the token that each begins with.
    """

    def __init__(
        self, backend: Any, texts: list[str], *, special: bool, tail: int, front: int | None
    ):
        self.backend, self.texts, self.special, self.tail = backend, texts, special, tail
        ids: list[int] = []
        self.ends = [0]
        for encoding in backend.encode_batch_fast(texts, add_special_tokens=special):
            token_ids = encoding.ids
            if front is not None and token_ids[:1] != [front]:
                ids.append(front)
            ids += token_ids[: len(token_ids) - tail]
            self.ends.append(len(ids))
        self.ids = np.array(ids, dtype=np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """``[n, 2]`` of all texts' tokens (int32); one put in front stands for no character."""
        self.backend.no_padding()
        self.backend.no_truncation()
        all_ranges = np.zeros((len(self.ids), 2), dtype=np.int32)
        encodings = self.backend.encode_batch(self.texts, add_special_tokens=self.special)
        for encoding, end in zip(encodings, self.ends[1:]):
            if ranges := encoding.offsets[: len(encoding) - self.tail]:
                all_ranges[end - len(ranges) : end] = ranges
        return all_ranges


class Place(NamedTuple):
    """Where some tokens are among all texts', and how many characters their offsets leave out."""

    texts: _Texts
    start: int
    end: int
    characters: int = 0

    def tokens(self) -> Tokens:
        return Tokens(self.texts.ids[self.start : self.end], self)


@dataclass(frozen=True)
class EncodedItem:
    """An item as tokens: one prefix per context and one continuation per choice.

    ``contexts`` are the texts the offsets refer to (a chat template changes them). ``error`` is
    set instead of tokens that cannot be scored.
    """

    item: Item
    contexts: tuple[str, ...]
    prefixes: tuple[Tokens, ...]
    continuations: tuple[Tokens, ...]
    error: str | None = None

    def prefix(self, choice: int) -> Tokens:
        return self.prefixes[choice] if len(self.prefixes) > 1 else self.prefixes[0]

    @property
    def longest(self) -> int:
        """Tokens the model must hold at once: the longest prefix plus continuation."""
        n_prefix = [len(tokens.ids) for tokens in self.prefixes]
        if len(n_prefix) == 1:
            n_prefix *= len(self.continuations)
        return max(n + len(tokens.ids) for n, tokens in zip(n_prefix, self.continuations)) - 1


class Encoder:
    """Tokenises items with one tokenizer and one set of conventions.

    ``bos``: ``auto`` does what the tokenizer does by itself, ``add`` puts exactly one BOS in
    front, ``none`` adds nothing. ``chat_template`` wraps each context as a user's turn and drops
    the space in front of the choices, as lm-eval does; ``chat_date`` is what it is told of the date.
    UserError for a token that a model of this ``vocabulary`` has no embedding for.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos: Bos = "auto",
        chat_template: bool = False,
        chat_date: str = CHAT_DATE,
        vocabulary: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_padding()
        self.backend.no_truncation()
        self.bos: Bos = bos
        self.n_tail = n_appended(self.backend)
        bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        empty_context_id = bos_id if bos_id is not None else eos_id
        self.bos_text = None if bos_id is None else tokenizer.decode([bos_id])
        if bos == "add" and bos_id is None:
            raise UserError("--bos add: this tokenizer has no BOS token; use --bos auto or none")
        self.chat = chat_template_of(tokenizer, chat_date) if chat_template else None
        if empty_context_id is None:
            raise UserError(
                "this tokenizer has neither a BOS nor an EOS token to stand for an "
                "empty context; use a tokenizer that has one"
            )
        no_text = np.zeros((1, 2), dtype=np.int64)
        self.empty_prefix = Tokens(np.array([empty_context_id], dtype=np.int64), no_text)

    @classmethod
    def of(cls, model: Any, **conventions: Any) -> Encoder:
        """For a model, loaded or only looked at: its tokenizer, and no token beyond its embeddings."""
        return cls(model.tokenizer, vocabulary=vocabulary_of(model), **conventions)

    def encode(self, items: Sequence[Item]) -> list[EncodedItem]:
        """Tokenise all items at once; every distinct text is tokenised once."""
        pairs: list[tuple[str, str]] = []
        for item in items:
            for choice, continuation in enumerate(item.continuations):
                context = item.context(choice)
                if self.chat:
                    context, continuation = self._as_turn(context), continuation.removeprefix(" ")
                pairs.append((context, continuation))
        stems = [context.rstrip() for context, _ in pairs]
        full_texts = [context + text for context, text in pairs]
        place_of_full = self.encode_texts(full_texts)
        stem_of = {stem: place.tokens() for stem, place in self.encode_texts(stems).items()}
        place_of_choice = self.encode_texts(
            [text for (context, text) in pairs if not context], special=False
        )
        encoded, cursor = [], iter(zip(pairs, stems, full_texts))
        for item in items:
            prefixes, continuations, contexts = [], [], []
            for (context, text), stem, full in itertools.islice(cursor, len(item.continuations)):
                if not context:
                    prefix, place = self.empty_prefix, place_of_choice[text]
                else:
                    prefix = stem_of[stem]
                    whole = place_of_full[full]
                    start = whole.start + len(prefix.ids)
                    place = whole._replace(start=start, characters=len(context))
                prefixes.append(prefix)
                contexts.append(context)
                continuations.append(place.tokens())
            if len(item.contexts) == 1:
                prefixes, contexts = prefixes[:1], contexts[:1]
            error = None
            for choice, tokens in enumerate(continuations):
                if not tokens.ids.size:
                    error = f"choice {choice} has no tokens of its own behind the context"
            if not all(prefix.ids.size for prefix in prefixes):
                error = "the context has no tokens"
            encoded.append(
                EncodedItem(item, tuple(contexts), tuple(prefixes), tuple(continuations), error)
            )
        return encoded

    def encode_prompt(self, text: str) -> tuple[str, Tokens]:
        """A text to be continued: as the model reads it (in its template), and its tokens."""
        wrapped = self._as_turn(text) if self.chat else text
        return wrapped, self.encode_texts([wrapped])[wrapped].tokens()

    def bos_added(self, encoded: Sequence[EncodedItem]) -> bool:
        """Whether prefixes begin with BOS. Raises UserError if one begins with it twice.

        The token that stands for an empty context is not counted: it is the whole prefix.
        """
        bos_id, added = self.tokenizer.bos_token_id, False
        for entry in encoded:
            for context, prefix in zip(entry.contexts, entry.prefixes):
                if not context:
                    continue
                if bos_id is not None and len(prefix) and prefix.ids[0] == bos_id:
                    added = True
                    if len(prefix) > 1 and prefix.ids[1] == bos_id and self.bos != "none":
                        raise UserError(
                            f"item {entry.item.item_id} begins with BOS twice: the text holds "
                            "one already; use --bos none"
                        )
        return added

    def _as_turn(self, context: str) -> str:
        assert self.chat is not None
        with template_errors():
            return self.chat.render([{"role": "user", "content": context}])

    def encode_texts(self, texts: Sequence[str], special: bool = True) -> dict[str, Place]:
        """Where each text's tokens are; every distinct text is tokenised once."""
        distinct = list(dict.fromkeys(texts))
        front = self.tokenizer.bos_token_id if special and self.bos == "add" else None
        special = special and self.bos == "auto"
        # A text that brings its own BOS gets none from the tokenizer (lm-eval, has_bos_prefix).
        with_bos = [text for text in distinct if special and self._brings_bos(text)]
        plain = [text for text in distinct if not (special and self._brings_bos(text))]
        places: dict[str, Place] = {}
        for group, add in ((plain, special), (with_bos, False)):
            tail = self.n_tail if add else 0
            tokenised = _Texts(self.backend, group, special=add, tail=tail, front=front)
            check_vocabulary(tokenised.ids, self.vocabulary)
            for text, (start, end) in zip(group, itertools.pairwise(tokenised.ends)):
                places[text] = Place(tokenised, start, end)
        return places

    def _brings_bos(self, text: str) -> bool:
        return self.bos_text is not None and text.startswith(self.bos_text)


def vocabulary_of(loaded: Any) -> int | None:
    """How many tokens a model, loaded or only looked at, has embeddings for, if it says."""
    config = loaded.config if hasattr(loaded, "config") else loaded.model.config
    return getattr(config.get_text_config(), "vocab_size", None)


def check_vocabulary(ids: np.ndarray, vocabulary: int | None) -> None:
    """UserError where a token lies beyond the model's embeddings."""
    if vocabulary is not None and ids.size and (highest := int(ids.max())) >= vocabulary:
        raise UserError(
            f"the tokenizer gives token {highest}, and the model has embeddings for {vocabulary:,} "
            f"tokens (0 to {vocabulary - 1}); use the tokenizer that the model was trained with"
        )


def n_appended(backend: Any) -> int:
    """How many tokens the tokenizer puts behind every text by itself (an EOS, say).

    They are cut off: between context and continuation such a token is no part of the text, and
    the prefix would swallow the continuation's first token for it.
    """
    special = backend.encode("a", add_special_tokens=True).special_tokens_mask
    return next((n for n, flag in enumerate(reversed(special)) if not flag), 0)


def check_lengths(encoded: Sequence[EncodedItem], max_length: int) -> None:
    """Raise UserError naming the first item that the model's window cannot hold."""
    for entry in encoded:
        if entry.error is None and entry.longest > max_length:
            raise UserError(
                f"item {entry.item.item_id} needs {entry.longest} tokens and the model's window holds "
                f"{max_length}; shorten it or use a model with a longer window (nothing is "
                "truncated)"
            )
