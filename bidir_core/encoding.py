"""Text to tokens: where the prefix ends and the continuation begins, as lm-eval decides it.

lm-eval (0.4.13, ``TemplateLM._encode_pair``) tokenises the context alone and context plus
continuation together, and cuts the second at the length of the first. White space that ends the
context moves to the continuation. An empty context becomes one token, BOS or else EOS.

That boundary matters more here than elsewhere: it is where bidirectional attention ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bidir_core.errors import UserError
from bidir_core.items import Item

Bos = Literal["auto", "add", "none"]


@dataclass(frozen=True)
class Tokens:
    """Token ids ``[n]`` (int64) and their character ranges ``[n, 2]`` in the text they came from.

    A continuation's offsets count from the continuation's own first character, so the white
    space that it took over from the context lies at negative offsets.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


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
        """The prefix in front of choice number ``choice``."""
        return self.prefixes[choice] if len(self.prefixes) > 1 else self.prefixes[0]

    @property
    def longest(self) -> int:
        """Tokens the model must hold at once: the longest prefix plus continuation."""
        return max(
            len(self.prefix(choice)) + len(tokens) - 1
            for choice, tokens in enumerate(self.continuations)
        )


class Encoder:
    """Tokenises items with one tokenizer and one set of conventions.

    ``bos``: ``auto`` does what the tokenizer does by itself, ``add`` puts exactly one BOS in
    front, ``none`` adds nothing. ``chat_template`` wraps each context as a user's turn and drops
    the space in front of the choices, as lm-eval does.
    """

    def __init__(self, tokenizer: Any, *, bos: Bos = "auto", chat_template: bool = False):
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_padding()
        self.backend.no_truncation()
        self.bos: Bos = bos
        self.n_tail = n_appended(self.backend)
        self.chat_template = chat_template
        bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.empty_context_id = bos_id if bos_id is not None else eos_id
        self.bos_text = None if bos_id is None else tokenizer.decode([bos_id])
        if bos == "add" and bos_id is None:
            raise UserError("--bos add: this tokenizer has no BOS token; use --bos auto or none")
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError("--chat-template: this tokenizer has no chat template; leave it out")
        if self.empty_context_id is None:
            raise UserError(
                "this tokenizer has neither a BOS nor an EOS token to stand for an "
                "empty context; use a tokenizer that has one"
            )

    def encode(self, items: Sequence[Item]) -> list[EncodedItem]:
        """Tokenise all items at once; every distinct text is tokenised once."""
        pairs: list[tuple[str, str]] = []
        for item in items:
            for choice, continuation in enumerate(item.continuations):
                context = item.context(choice)
                if self.chat_template:
                    context, continuation = self._as_turn(context), continuation.removeprefix(" ")
                pairs.append((context, continuation))
        stems = [context.rstrip() for context, _ in pairs]
        whole_of = self._encode_texts([context + text for context, text in pairs])
        stem_of = self._encode_texts(stems)
        alone_of = self._encode_texts(
            [text for (context, text) in pairs if not context], special=False
        )
        encoded, cursor = [], 0
        for item in items:
            prefixes, continuations, contexts = [], [], []
            for _ in item.continuations:
                continued: Tokens
                (context, text), stem = pairs[cursor], stems[cursor]
                cursor += 1
                if not context:
                    prefix, continued = self._after_nothing(alone_of[text])
                else:
                    prefix, whole = stem_of[stem], whole_of[context + text]
                    n = len(prefix)
                    continued = Tokens(whole.ids[n:], whole.offsets[n:] - len(context))
                prefixes.append(prefix)
                contexts.append(context)
                continuations.append(continued)
            if len(item.contexts) == 1:
                prefixes, contexts = prefixes[:1], contexts[:1]
            error = None
            for choice, tokens in enumerate(continuations):
                if not len(tokens):
                    error = f"choice {choice} has no tokens of its own behind the context"
            if any(not len(prefix) for prefix in prefixes):
                error = "the context has no tokens"
            encoded.append(
                EncodedItem(item, tuple(contexts), tuple(prefixes), tuple(continuations), error)
            )
        return encoded

    def encode_prompt(self, text: str) -> tuple[str, Tokens]:
        """A text to be continued: as the model reads it (in its template), and its tokens."""
        wrapped = self._as_turn(text) if self.chat_template else text
        return wrapped, self._encode_texts([wrapped])[wrapped]

    def bos_added(self, encoded: Sequence[EncodedItem]) -> bool:
        """Whether prefixes begin with BOS. Raises UserError if one begins with it twice.

        The token that stands for an empty context is not counted: it is the whole prefix.
        """
        bos_id, added = self.tokenizer.bos_token_id, False
        for one in encoded:
            for context, prefix in zip(one.contexts, one.prefixes):
                if not context:
                    continue
                if bos_id is not None and len(prefix) and prefix.ids[0] == bos_id:
                    added = True
                    if len(prefix) > 1 and prefix.ids[1] == bos_id and self.bos != "none":
                        raise UserError(
                            f"item {one.item.item_id} begins with BOS twice: the text holds one "
                            "already; use --bos none"
                        )
        return added

    def _as_turn(self, context: str) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": context}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's authors
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"--chat-template: this tokenizer's template cannot be used ({said}); leave it out"
            ) from error

    def _after_nothing(self, alone: Tokens) -> tuple[Tokens, Tokens]:
        """The prefix token that stands for an empty context, and the continuation behind it."""
        no_text = np.zeros((1, 2), dtype=np.int64)
        return Tokens(np.array([self.empty_context_id], dtype=np.int64), no_text), alone

    def _encode_texts(self, texts: Sequence[str], special: bool = True) -> dict[str, Tokens]:
        distinct = list(dict.fromkeys(texts))
        add_bos = special and self.bos == "add"
        special = special and self.bos == "auto"
        # A text that brings its own BOS gets none from the tokenizer (lm-eval, has_bos_prefix).
        brings = [special and self._brings_bos(text) for text in distinct]
        plain = [text for text, own in zip(distinct, brings) if not own]
        with_own = [text for text, own in zip(distinct, brings) if own]
        found: dict[str, Tokens] = {}
        for group, add in ((plain, special), (with_own, False)):
            tail = self.n_tail if add else 0
            for text, encoding in zip(
                group, self.backend.encode_batch(group, add_special_tokens=add)
            ):
                found[text] = self._tokens(encoding, tail, add_bos)
        return found

    def _brings_bos(self, text: str) -> bool:
        return self.bos_text is not None and text.startswith(self.bos_text)

    def _tokens(self, encoding: Any, tail: int, add_bos: bool) -> Tokens:
        end = len(encoding.ids) - tail
        ids = np.array(encoding.ids[:end], dtype=np.int64)
        offsets = np.array(encoding.offsets[:end], dtype=np.int64).reshape(-1, 2)
        if add_bos and not (len(ids) and ids[0] == self.tokenizer.bos_token_id):
            ids = np.concatenate([[self.tokenizer.bos_token_id], ids])
            offsets = np.concatenate([np.zeros((1, 2), dtype=np.int64), offsets])
        return Tokens(ids, offsets)


def n_appended(backend: Any) -> int:
    """How many tokens the tokenizer puts behind every text by itself (an EOS, say).

    They are cut off: between context and continuation such a token is no part of the text, and
    the prefix would swallow the continuation's first token for it.
    """
    special = backend.encode("a", add_special_tokens=True).special_tokens_mask
    return next((n for n, flag in enumerate(reversed(special)) if not flag), 0)


def check_lengths(encoded: Sequence[EncodedItem], max_length: int) -> None:
    """Raise UserError naming the first item that the model's window cannot hold."""
    for one in encoded:
        if one.error is None and one.longest > max_length:
            raise UserError(
                f"item {one.item.item_id} needs {one.longest} tokens and the model's window holds "
                f"{max_length}; shorten it or use a model with a longer window (nothing is "
                "truncated)"
            )
