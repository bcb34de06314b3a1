"""What a pipeline is told, and the stages that follow from it.

The settings of single evaluations and fine-tunes keep their names, help and defaults here; only
what a pipeline adds is declared anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.settings import check_config, same_as, setting, to_json
from bidir_core.evaluate.config import EvalConfig
from bidir_core.regimes import parse_regime
from bidir_core.train.config import FinetuneConfig

PUBLISHED = "published"
# What each preset sets; a flag on the command line wins over it.
PRESETS: dict[str, dict[str, Any]] = {
    # As the published study evaluated: the first 500 items of each task.
    PUBLISHED: {"limit": 500, "eval_every": 50},
    # For two CPU cores and half an hour: enough to see each part work, not to settle anything.
    "quick": {
        "limit": 100,
        "steps": 40,
        "batch_samples": 16,
        "max_tokens": 192,
        "warmup_steps": 4,
        "lr": 2e-4,
        "eval_every": 20,
        "eval_items": 10,
        "checkpoint_every": 20,
    },
}


_eval = partial(same_as, EvalConfig)
_train = partial(same_as, FinetuneConfig)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The whole experiment: stages 1, 2, 3B, 3C, 4, the non-prefill compare, the report."""

    model: str = _eval("model")
    revision: str | None = _eval("revision")
    regime: str = setting(
        "bidirectional",
        help="the regime of stages 2, 3B and 4, e.g. bidirectional:sink=1",
        role="identity",
    )
    seeds: int = setting(
        1, help="how many training seeds; each trains 3B and 3C", role="identity", metavar="N"
    )
    seed: int = setting(0, help="the first training seed", role="identity")
    distill: bool = setting(False, help="also distil the causal base model", role="identity")
    distill_anchor: float = setting(
        1.0, help="weight of the causal anchor in distillation", role="identity"
    )
    leaky: bool = setting(
        False, help="also the leaky 3A: a warning exhibit, never a result", role="identity"
    )
    floor: bool = setting(
        True, help="also score without contexts, for the retention above that", role="identity"
    )

    tasks: tuple[str, ...] = _eval("tasks")
    split: str = _eval("split")
    limit: int | None = _eval(
        "limit", metavar="N|all", help="items per task, or all (left out: what the preset says)"
    )
    sample: str = _eval("sample")
    fold: str = _eval("fold")
    bos: str = _eval("bos")
    chat_template: bool = setting(
        False, help="put prompts into the model's chat format, here and there", role="identity"
    )
    num_fewshot: int = _eval("num_fewshot")
    data_source: str = _eval("data_source")
    batch_tokens: int | None = _eval("batch_tokens")
    compact: bool = _eval("compact")

    data: str = _train("data")
    prompt_column: str = _train("prompt_column")
    response_column: str = _train("response_column")
    messages_column: str | None = _train("messages_column")
    max_tokens: int = _train("max_tokens")
    over_long: str = _train("over_long")
    append_eos: bool = _train("append_eos")
    decontaminate: bool = _train("decontaminate")
    method: str = _train("method")
    lora_rank: int = _train("lora_rank")
    lora_alpha: int = _train("lora_alpha")
    lora_dropout: float = _train("lora_dropout")
    steps: int = _train("steps")
    batch_samples: int = _train("batch_samples")
    lr: float = _train("lr")
    warmup_steps: int = _train("warmup_steps")
    final_lr_fraction: float = _train("final_lr_fraction")
    weight_decay: float = _train("weight_decay")
    beta2: float = _train("beta2")
    clip: float = _train("clip")

    dtype: str = _eval("dtype")
    device: str = _eval("device")
    attn: str = _eval("attn")
    micro_tokens: int | None = _train("micro_tokens")
    gradient_checkpointing: bool = _train("gradient_checkpointing")
    compile: str = _train("compile")
    checkpoint_every: int = _train("checkpoint_every")
    log_every: int = _train("log_every")
    eval_every: int = _train("eval_every")
    eval_items: int = _train("eval_items")
    tracker: str = _train("tracker")
    runs_dir: str | None = _eval("runs_dir")
    name: str | None = _eval("name")

    def __post_init__(self) -> None:
        check_config(self)
        regime = parse_regime(self.regime)
        if not regime.bidirectional:
            raise UserError(
                f"--regime {self.regime}: stages 2 and 4 need a bidirectional regime; "
                "leave it out for plain bidirectional prefill"
            )
        object.__setattr__(self, "regime", str(regime))
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: give a number from 1 up")
        if self.distill_anchor < 0:
            raise UserError(f"--distill-anchor {self.distill_anchor}: give a number from 0 up")
        plan(self)  # its stages' own checks

    @property
    def digest(self) -> str:
        """Eight characters that change with anything that changes the numbers."""
        values = to_json(self)
        decisive = {
            s.name: values[s.name] for s in fields(self) if s.metadata["role"] == "identity"
        }
        text = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Stage:
    """One run of the pipeline. ``trained_by`` names the stage whose checkpoint it evaluates."""

    key: str
    title: str
    config: EvalConfig | FinetuneConfig
    trained_by: str | None = None

    @property
    def trains(self) -> bool:
        return isinstance(self.config, FinetuneConfig)


def from_preset(given: Mapping[str, Any], preset: str = PUBLISHED) -> PipelineConfig:
    """The preset's settings, then those that were given. Raises UserError for an unknown one."""
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    return PipelineConfig(**{**PRESETS[preset], **given})


def plan(config: PipelineConfig) -> list[Stage]:
    """The stages in order; those that use one checkpoint stand together.

    3B and 3C of a seed differ in objective and mask alone: data, order, steps and seed are shared.
    """
    evaluation, training = _eval_config(config), _train_config(config)
    both = (("bidirectional prefill", config.regime), ("causal", "causal"))
    stages = [
        Stage("stage1", "stage 1, the base model, causal", evaluation),
        Stage(
            "stage2",
            f"stage 2, the base model, {config.regime}",
            replace(evaluation, regime=config.regime),
        ),
    ]
    if config.floor:
        stages.append(
            Stage(
                "floor",
                "the floor, the base model without contexts",
                replace(evaluation, context="none"),
            )
        )
    for seed in range(config.seed, config.seed + config.seeds):
        for objective in _objectives(config):
            key = f"{objective}-seed{seed}"
            shown = {"3A": "3A (leaky)", "distill": "distil"}.get(objective, objective)
            stages.append(
                Stage(
                    key,
                    f"fine-tune {shown}, seed {seed}",
                    replace(
                        training,
                        objective=objective,
                        regime=None if objective == "3C" else config.regime,
                        seed=seed,
                        causal_anchor=config.distill_anchor if objective == "distill" else 0.0,
                    ),
                )
            )
            for what, regime in both:
                stage = "stage 4" if regime != "causal" else "non-prefill compare"
                stages.append(
                    Stage(
                        f"{key}-{'causal' if regime == 'causal' else 'regime'}",
                        f"{stage}, {shown} checkpoint, seed {seed}, {what}",
                        replace(evaluation, regime=regime),
                        trained_by=key,
                    )
                )
    return stages


def _objectives(config: PipelineConfig) -> list[str]:
    return ["3B", "3C", *(["distill"] if config.distill else []), *(["3A"] if config.leaky else [])]


def _shared(config: PipelineConfig, target: type, *leave_out: str) -> dict[str, Any]:
    names = {spec.name for spec in fields(target)} - set(leave_out)
    return {spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name in names}


def _eval_config(config: PipelineConfig) -> EvalConfig:
    # The seed here is the training's; items are drawn with seed 0, the same for all seeds.
    return EvalConfig(**_shared(config, EvalConfig, "regime", "seed"))


def _train_config(config: PipelineConfig) -> FinetuneConfig:
    return FinetuneConfig(**_shared(config, FinetuneConfig, "regime", "seed"), objective="3B")
