"""A lab's settings: those of an evaluation, and what is varied."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from bidir_core.config import EvalConfig, setting
from bidir_core.errors import UserError
from bidir_core.lab.sweep import Sweep, parse_sweep


@dataclass(frozen=True, kw_only=True)
class LabConfig(EvalConfig):
    """Which regimes to run on one model and one set of items. Everything else is as in eval."""

    regime: str = setting("causal", help="the baseline", role="identity", cli=False)
    sweep: tuple[str, ...] = setting((), help="what to vary", role="identity", cli=False)
    controls: bool = setting(
        False,
        help="add the controls that could refute the story: sufficiency, placebo, relocated sink, "
        "key or value, triviality, prompt conditions, last prompt token, context floor",
        role="identity",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.sweep:
            parse_sweep(text)
        if not self.sweep and not self.controls:
            raise UserError(
                "say what to vary: --sweep sink=0,1,2 (see --help for more), or --controls"
            )

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        return tuple(parse_sweep(text) for text in self.sweep)

    def evaluation(self, **changes: Any) -> EvalConfig:
        """The settings of one evaluation with these changes."""
        known = {spec.name for spec in fields(EvalConfig)}
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name in known}
        return EvalConfig(**{**own, **changes})
