"""Everything that a fine-tune can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bidir_core.common.errors import UserError
from bidir_core.common.settings import check_config, same_as, setting
from bidir_core.data.assets import absolute_place
from bidir_core.evaluate.config import DTYPES, EvalConfig
from bidir_core.regimes import Regime, parse_regime
from bidir_core.runs.layout import TRAININGS
from bidir_core.train.mixtures import MIXTURES

MICRO_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 8192}  # what --micro-tokens auto means
TRACKERS = ("none", "tensorboard", "wandb", "trackio")


# What can be trained: which tokens are the prefix, under which regime, with which loss.


@dataclass(frozen=True)
class Objective:
    """One way to fine-tune; ``OBJECTIVES`` holds them all."""

    code: str
    prefix: Prefix
    default_regime: str = "bidirectional"
    distils: bool = False
    leaky: bool = False

    @property
    def flag(self) -> str:
        return TRAININGS[self.code].flag

    @property
    def what(self) -> str:
        return TRAININGS[self.code].what

    def regime(self, requested: str | None) -> Regime:
        """The regime to train under. Raises UserError for one that contradicts the objective."""
        regime = parse_regime(requested if requested is not None else self.default_regime)
        control = self.default_regime == "causal"
        if control and not regime.is_causal:
            raise UserError(f"{self.flag} trains causally; leave out --regime {regime}")
        if not control and not regime.bidirectional:
            raise UserError(
                f"{self.flag} --regime {regime}: nothing would look ahead; for the causal control "
                "use --causal-train"
            )
        return regime


OBJECTIVES: dict[str, Objective] = {
    objective.code: objective
    for objective in (
        Objective("3B", prefix="prompt"),
        Objective("3C", prefix="prompt", default_regime="causal"),
        Objective("3A", prefix="sample", leaky=True),
        Objective("distill", prefix="split", distils=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What to train, on what, how, and where. ``objective`` is a code of ``OBJECTIVES``."""

    model: str = same_as(EvalConfig, "model")
    revision: str | None = same_as(EvalConfig, "revision")
    objective: str = setting(
        help="what is trained: "
        + "; ".join(f"{code}: {goal.what}" for code, goal in OBJECTIVES.items()),
        choices=tuple(OBJECTIVES),
        cli=False,  # the command line has one flag for each
    )
    regime: str | None = setting(
        None, help="who sees whom in training (default: bidirectional, or causal for the control)"
    )
    causal_anchor: float = setting(
        0.0, help="weight of KL(base || student), both causal, which protects the causal mode"
    )

    data: str = setting(
        "far",
        help="the embedded mixture far, near or farther (for the order tasks), a JSONL file, or "
        "hub:OWNER/NAME[@CONFIG][:SPLIT]; rows as TRL, Alpaca and ShareGPT have them are read",
    )
    prompt_column: str = setting("prompt", help="the data's field with prompts")
    response_column: str = setting("response", help="the data's field with responses")
    messages_column: str | None = setting(
        None, help="the data's field with conversations, instead of the two"
    )
    chat_template: bool = setting(
        False, help="put prompts and responses into the model's chat format"
    )
    assistant_turns: str = setting(
        "last",
        help="which of the assistant's messages in a conversation are learned, each after all "
        "before it",
        choices=("last", "all"),
    )
    max_tokens: int = setting(512, help="longest sample, prompt and response together", metavar="N")
    over_long: str = setting(
        "drop",
        help="longer samples are dropped, or lose the beginning of their prompt (truncate)",
        choices=("drop", "truncate"),
    )
    append_eos: bool = setting(
        True, help="end each response with EOS, so that the model learns to stop"
    )
    decontaminate: bool = setting(
        True, help="drop samples that share 13 words in a row with an evaluation item"
    )

    method: str = setting(
        "full",
        help="train all weights, or a low-rank adapter beside them",
        choices=("full", "lora"),
    )
    lora_rank: int = setting(8, help="rank of the adapter", metavar="R")
    lora_alpha: int = setting(16, help="the adapter's scale is alpha / rank", metavar="A")
    lora_dropout: float = setting(0.0, help="dropout in front of the adapter")

    steps: int = setting(400, help="optimizer steps", metavar="N")
    batch_samples: int = setting(64, help="samples per step", metavar="N")
    lr: float = setting(1e-4, help="peak learning rate")
    warmup_steps: int = setting(
        20, help="steps of linear warm-up, at most half of all, before the cosine", metavar="N"
    )
    final_lr_fraction: float = setting(0.0, help="where the cosine ends, as a fraction of the peak")
    weight_decay: float = setting(0.0, help="AdamW's, on matrices only")
    beta2: float = setting(0.95, help="AdamW's second-moment decay")
    clip: float = setting(1.0, help="largest norm of the gradient; 0 switches clipping off")
    seed: int = setting(0, help="of data order, cuts, adapter and dropout")

    dtype: str = setting(
        "auto",
        help="auto is float32 on a CPU and bfloat16, with float32 master weights, on a GPU",
        choices=DTYPES,
    )
    device: str = same_as(EvalConfig, "device")
    attn: str = same_as(EvalConfig, "attn")
    micro_tokens: int | None = setting(
        None,
        help="tokens computed at once; a step is cut into as many parts as it takes",
        role="runtime",
        metavar="N|auto",
    )
    gradient_checkpointing: bool = setting(
        False, help="save memory by computing each layer twice", role="runtime"
    )
    compile: str = setting(
        "none",
        help="default fuses small operations with torch.compile; reduce-overhead also records a "
        "step as CUDA graphs and replays them, for a small model on a GPU to itself (embedded "
        "model, one H100: 2.6 times the tokens/s); each shape's recording holds memory",
        role="runtime",
        choices=("none", "default", "reduce-overhead"),
    )
    checkpoint_every: int = setting(
        100, help="steps between checkpoints; 0 for none", role="runtime", metavar="N"
    )
    log_every: int = setting(10, help="steps between reports", role="runtime", metavar="N")
    eval_every: int = setting(
        0,
        help="steps between quick evaluations under both regimes; 0 for none",
        role="runtime",
        metavar="N",
    )
    eval_items: int = setting(
        50, help="items per task in a quick evaluation (explore fold)", role="runtime", metavar="N"
    )
    tracker: str = setting(
        "none", help="also log to tensorboard, wandb or trackio", role="runtime", choices=TRACKERS
    )
    runs_dir: str | None = same_as(EvalConfig, "runs_dir")
    name: str | None = same_as(EvalConfig, "name")

    def __post_init__(self) -> None:
        if isinstance(self.compile, bool):  # as older runs recorded it
            object.__setattr__(self, "compile", "default" if self.compile else "none")
        check_config(self, **_AT_LEAST)
        if self.compile == "reduce-overhead" and self.gradient_checkpointing:
            raise UserError(
                "--compile reduce-overhead cannot record --gradient-checkpointing; use --compile "
                "default, or a smaller --micro-tokens without checkpointing"
            )
        if not self.lr > 0:
            raise UserError(f"--lr {self.lr}: give a number above 0")
        for name in ("lora_dropout", "final_lr_fraction", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give a number from 0 to 1"
                )
        if self.dtype == "float16":
            raise UserError("--dtype float16 overflows in training; use bfloat16 or float32")
        # A run is resumed from whatever folder one is in then.
        object.__setattr__(self, "model", absolute_place(self.model))
        if self.data not in MIXTURES:
            object.__setattr__(self, "data", absolute_place(self.data))
        # The canonical print, with the objective's own default filled in.
        object.__setattr__(self, "regime", str(self.goal.regime(self.regime)))

    @property
    def goal(self) -> Objective:
        return OBJECTIVES[self.objective]

    @property
    def needs_base(self) -> bool:
        """Whether the base model's predictions are part of the loss."""
        return self.goal.distils or self.causal_anchor > 0


_AT_LEAST = {
    "causal_anchor": 0,
    "max_tokens": 2,
    "lora_rank": 1,
    "lora_alpha": 1,
    "steps": 1,
    "batch_samples": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "clip": 0,
    "seed": 0,
    "micro_tokens": 1,
    "checkpoint_every": 0,
    "log_every": 1,
    "eval_every": 0,
    "eval_items": 1,
}

Prefix = Literal["prompt", "sample", "split"]
