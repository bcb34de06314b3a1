"""What an exported results file says about the run it came from, under the key ``bidir_core``.

lm-eval's format has no place for a regime, a fold or a tokenizer's fingerprint. Its tools ignore a
key they do not know, and our own import reads it back, so that an exported run still pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bidir_core.errors import UserError
from bidir_core.interop.lm_eval_files import LmEvalOutput
from bidir_core.regimes import parse_regime
from bidir_core.store import Run

KEY = "bidir_core"
_SETTINGS = {
    "model": str, "revision": str, "checkpoint": str, "split": str, "limit": int, "sample": str,
    "seed": int, "fold": str, "context": str, "bos": str, "chat_template": bool, "num_fewshot": int,
    "patch": str,
}  # fmt: skip
_FACTS = {
    "model_fingerprint": str, "tokenizer_fingerprint": str, "bos_added": bool, "dtype": str,
    "attention": str,
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Settings and facts of the exported run; empty for a file of lm-eval's own."""

    run: str | None = None
    regime: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def origin_of(run: Run) -> dict[str, Any]:
    """What to write about a run; strings, numbers and truth values only."""
    return {
        "run": run.id,
        "regime": run.regime,
        "settings": {name: run.settings.get(name) for name in _SETTINGS},
        "facts": {name: run.config.get(name) for name in _FACTS},
    }


def read_origin(output: LmEvalOutput) -> Origin:
    """Read it back; `UserError` where a file that has it was damaged."""
    block = output.results.get(KEY)
    if block is None:
        return Origin()
    try:
        return Origin(
            str(block["run"])[:200],
            str(parse_regime(block["regime"])),
            _checked(block["settings"], _SETTINGS),
            _checked(block["facts"], _FACTS),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{output.results_path}: its part {KEY!r} is damaged: {error}") from error


def _checked(values: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    found = {}
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and type(value) is not kind:
            raise TypeError(f"{name} is {str(value)[:40]!r}")
        found[name] = value
    return found
