"""Conversations as a tokenizer's chat template writes them, with nothing lost on the way.

A template is a program of the model's authors. Two things go wrong without an error: one that walks
over a message's parts finds none in a plain text and writes nothing, and one that prints the date
writes another prompt every day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.progress import TEMPLATE_SECONDS, time_limit

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


def chat_template(tokenizer: Any, chat_date: str = CHAT_DATE) -> ChatTemplate:
    """The tokenizer's own template; `UserError` if it has none that can be used."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("--chat-template: this tokenizer has no chat template; leave it out")
    with template_errors():
        return ChatTemplate(tokenizer, chat_date)


class LostText(ValueError):
    """A template left out a message's text, in whatever form it was given."""


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

        Raises :class:`LostText` if the text of a message is not in it, other than one that the
        assistant gave earlier (templates leave its reasoning out), and whatever the template raises.
        """
        with time_limit(TEMPLATE_SECONDS, "it"):
            text = self._apply(messages, prompt)
        for number, message in enumerate(messages, start=1):
            earlier = message["role"] == "assistant" and number < len(messages)
            if not earlier and not _holds(text, message["content"]):
                raise LostText(
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
