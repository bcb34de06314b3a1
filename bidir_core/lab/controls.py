"""Controls that could refute the story a sweep tells."""

from __future__ import annotations

from typing import Any


def plan(prompts: Any) -> tuple[list[Any], list[str]]:
    return [], []


def judge(sweep: Any) -> list[dict[str, Any]]:
    return []


def measure_attention(path: Any, prompts: Any, loaded: Any) -> None:
    return None
