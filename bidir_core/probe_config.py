"""What the probe is asked: a model, and the regime it should follow."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_core.config import DTYPES, EMBEDDED_MODELS, check_config, setting
from bidir_core.regimes import parse_regime


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One check that a model attends as a regime says. It scores no items and writes no run."""

    model: str = setting(
        help=f"{' or '.join(EMBEDDED_MODELS)} (embedded), a hub id, or a local folder",
        role="identity",
    )
    revision: str | None = setting(None, help="the hub revision of the model", role="identity")
    checkpoint: str | None = setting(
        None, help="a fine-tuned checkpoint (full or LoRA adapter) of the model", role="identity"
    )
    regime: str = setting(
        "bidirectional", help="who sees whom, e.g. bidirectional:sink=1", role="identity"
    )
    dtype: str = setting(
        "auto",
        help="auto is float32 on a CPU and bfloat16 on a GPU",
        role="identity",
        choices=DTYPES,
    )
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1, mps", role="runtime")
    attn: str = setting(
        "auto", help="attention implementation: auto, sdpa or eager", role="identity"
    )

    def __post_init__(self) -> None:
        check_config(self)
        object.__setattr__(self, "regime", str(parse_regime(self.regime)))  # canonical print
