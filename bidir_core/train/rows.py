"""Rows of training data as they lie in files: which fields hold the prompt and the response.

```
{"prompt": "..", "response": ".."}                          the two columns, by any name
{"prompt": "..", "completion": ".."}                        TRL; also with lists of messages
{"instruction": "..", "input": "..", "output": ".."}        Alpaca; the input may be empty
{"messages": [{"role": "user", "content": ".."}, ..]}       a conversation
{"conversations": [{"from": "human", "value": ".."}, ..]}   ShareGPT
```

A file holds one such object a line, or one JSON list of them. Nothing here needs a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.data.source import json_lines, parse_json

ROLES = {  # ShareGPT's words, and what chat templates call them
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Columns:
    """Names of the fields that hold a sample; ``messages`` None means prompt and response."""

    prompt: str = "prompt"
    response: str = "response"
    messages: str | None = None


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row is, for messages, and the row. UserError for what is no JSON in UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        rows = parse_json(data, str(path))
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    else:
        yield from json_lines(path)


def texts_of(row: Any, columns: Columns, where: str) -> tuple[str, str] | Messages:
    """A row's prompt and response, or its conversation. UserError naming what it lacks."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: not an object with named fields")
    if columns.messages and columns.messages in row:
        return _messages(row[columns.messages], where)
    prompt, response = columns.prompt, columns.response
    if prompt not in row or response not in row:
        for name in ("messages", "conversations"):
            if prompt not in row and name in row:
                return _messages(row[name], where)
        if (prompt, response) == ("prompt", "response"):
            if {"prompt", "completion"} <= row.keys():
                response = "completion"
            elif {"instruction", "output"} <= row.keys():
                prompt, response = "instruction", "output"
    if isinstance(row.get(prompt), list) and isinstance(row.get(response), list):
        return _messages([*row[prompt], *row[response]], where)
    texts = []
    for column in (prompt, response):
        if not isinstance(row.get(column), str) or not row[column].strip():
            have = ", ".join(sorted(map(str, row))) or "nothing"
            raise UserError(
                f"{where}: no text in '{column}' (the fields are: {have}); name the fields with "
                "--prompt-column and --response-column, or --messages-column"
            )
        texts.append(row[column])
    if prompt == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        texts[0] += f"\n\n{row['input']}"
    return texts[0], texts[1]


def _messages(turns: Any, where: str) -> Messages:
    messages = []
    for turn in turns if isinstance(turns, list) else []:
        turn = turn if isinstance(turn, Mapping) else {}
        role, content = turn.get("role"), turn.get("content")
        if "from" in turn:
            role, content = ROLES.get(str(turn["from"])), turn.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(
                f"{where}: messages must be objects with role and content, or with from "
                f"({', '.join(ROLES)}) and value"
            )
        messages.append({"role": role, "content": content})
    if len(messages) < 2:
        raise UserError(f"{where}: messages must be a list of two or more")
    return messages


def trained_turns(messages: Messages, turns: str, where: str) -> list[int]:
    """Which messages are learned: the ``last`` one, or ``all`` of the assistant's that follow one."""
    indices = [i for i, turn in enumerate(messages) if i > 0 and turn["role"] == "assistant"]
    if not indices or (turns == "last" and indices[-1] != len(messages) - 1):
        raise UserError(f"{where}: the last message is not the assistant's; nothing to train on")
    return indices if turns == "all" else indices[-1:]
