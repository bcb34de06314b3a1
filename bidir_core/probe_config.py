"""What the probe is asked: a model, and the regime it should follow."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.config import EvalConfig, check_config, same_as
from bidir_core.regimes import parse_regime


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One check that a model attends as a regime says. It scores no items and writes no run."""

    model: str = same_as(EvalConfig, "model")
    revision: str | None = same_as(EvalConfig, "revision")
    checkpoint: str | None = same_as(EvalConfig, "checkpoint")
    regime: str = same_as(EvalConfig, "regime", default="bidirectional")
    dtype: str = same_as(EvalConfig, "dtype")
    device: str = same_as(EvalConfig, "device")
    attn: str = same_as(EvalConfig, "attn")

    def __post_init__(self) -> None:
        check_config(self)
        object.__setattr__(self, "regime", str(parse_regime(self.regime)))  # canonical print
