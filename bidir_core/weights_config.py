"""What ``weights`` is told, and the four evaluations that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

from bidir_core.config import EvalConfig, check_config, same_as, setting
from bidir_core.errors import UserError
from bidir_core.pipeline_config import Stage
from bidir_core.regimes import parse_regime

CAUSAL = "causal"
# Native first: what only loading can tell of it is refused before there is any run.
WEIGHTS = ("native", "dequantise")
TITLES = {"native": "8-bit weights as they are", "dequantise": "dequantised weights"}

_eval = partial(same_as, EvalConfig)


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """One model with 8-bit weights, run both ways, each causal and under a regime."""

    model: str = _eval("model")
    revision: str | None = _eval("revision")
    regime: str = setting(
        "bidirectional",
        help="the regime beside causal, e.g. bidirectional:sink=1",
        role="identity",
    )
    tasks: tuple[str, ...] = _eval("tasks")
    split: str = _eval("split")
    limit: int | None = _eval("limit")
    sample: str = _eval("sample")
    seed: int = _eval("seed", help="for --sample random")
    fold: str = _eval("fold")
    bos: str = _eval("bos")
    chat_template: bool = _eval("chat_template")
    num_fewshot: int = _eval("num_fewshot")
    data_source: str = _eval("data_source")
    dtype: str = _eval("dtype")
    device: str = _eval("device")
    attn: str = _eval("attn")
    batch_tokens: int | None = _eval("batch_tokens")
    compact: bool = _eval("compact")
    runs_dir: str | None = _eval("runs_dir")
    name: str | None = _eval("name", help="a name at the end of the four run folders")

    def __post_init__(self) -> None:
        check_config(self)
        regime = parse_regime(self.regime)
        if regime.is_causal:
            raise UserError(
                f"--regime {self.regime}: causal is evaluated anyway; give the regime beside it, "
                "or leave it out for bidirectional"
            )
        object.__setattr__(self, "regime", str(regime))
        plan(self)  # its evaluations' own checks


def key_of(weights: str, regime: str) -> str:
    return f"{weights}, {regime}"


def plan(config: WeightsConfig) -> list[Stage]:
    """The four evaluations in order; those that use one loaded model stand together."""
    shared = {
        spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name != "regime"
    }
    return [
        Stage(
            key_of(weights, regime),
            f"{TITLES[weights]}, {regime}",
            EvalConfig(**shared, weights=weights, regime=regime),
        )
        for weights in WEIGHTS
        for regime in (CAUSAL, config.regime)
    ]
