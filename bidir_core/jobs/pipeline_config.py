"""What a pipeline is told, and the stages that follow from it.

A pipeline holds the settings of its evaluations and of its fine-tunes, under their own names, and adds
only what neither has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar

from bidir_core.common.errors import UserError
from bidir_core.common.settings import check_config, same_as, setting
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


@dataclass(kw_only=True)
class _Reworded:
    """Settings of evaluations and fine-tunes with another help text in a pipeline."""

    limit: int | None = same_as(
        EvalConfig,
        "limit",
        metavar="N|all",
        help="items per task, or all (left out: what the preset says)",
    )
    chat_template: bool = setting(
        False, help="put prompts into the model's chat format, here and there"
    )


@dataclass(frozen=True, kw_only=True, init=False)
class PipelineConfig:
    """The whole experiment: stages 1, 2, 3B, 3C, 4, the non-prefill compare, the report.

    ``evaluation`` is stage 1's, ``training`` that of 3B. Either may be given as such or, setting by
    setting, flat: ``PipelineConfig(model=..., limit=..., steps=...)``. They are read flat, too.
    """

    SETTINGS: ClassVar[tuple[Field[Any], ...]]  # as flags and forms have them

    regime: str = setting(
        "bidirectional", help="the regime of stages 2, 3B and 4, e.g. bidirectional:sink=1"
    )
    seeds: int = setting(1, help="how many training seeds; each trains 3B and 3C", metavar="N")
    seed: int = setting(0, help="the first training seed")
    distill: bool = setting(False, help="also distil the causal base model")
    distill_anchor: float = setting(1.0, help="weight of the causal anchor in distillation")
    leaky: bool = setting(False, help="also the leaky 3A: a warning exhibit, never a result")
    floor: bool = setting(True, help="also score without contexts, for the retention above that")
    evaluation: EvalConfig
    training: FinetuneConfig

    def __init__(
        self,
        *,
        evaluation: EvalConfig | None = None,
        training: FinetuneConfig | None = None,
        **given: Any,
    ) -> None:
        unknown = given.keys() - {spec.name for spec in self.SETTINGS}
        if unknown:
            raise TypeError(f"PipelineConfig has no setting {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {s.name: given.pop(s.name, s.default) for s in _own_settings()}
        shared: dict[str, Any] = {}
        for part in (training, evaluation):
            if part is not None:
                names = [spec.name for spec in fields(part) if spec.name not in _DECIDED]
                shared |= {name: getattr(part, name) for name in names}
        shared |= given
        regime = parse_regime(values["regime"])
        if not regime.bidirectional:
            raise UserError(
                f"--regime {values['regime']}: stages 2 and 4 need a bidirectional regime; "
                "leave it out for plain bidirectional prefill"
            )
        values["regime"] = str(regime)
        values["evaluation"] = EvalConfig(**_known(shared, EvalConfig))
        values["training"] = FinetuneConfig(**_known(shared, FinetuneConfig), objective="3B")
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_config(self, seeds=1, distill_anchor=0)
        plan(self)  # its stages' own checks

    def __getattr__(self, name: str) -> Any:
        """A setting of its evaluations or fine-tunes: forms, flags and files ask by name."""
        if name in {spec.name for spec in self.SETTINGS}:
            for part in (self.__dict__.get("evaluation"), self.__dict__.get("training")):
                if part is not None and hasattr(part, name):
                    return getattr(part, name)
        raise AttributeError(name)

    @property
    def digest(self) -> str:
        """Eight characters that differ where a setting differs that decides the numbers."""
        decisive = {
            spec.name: getattr(self, spec.name)
            for spec in self.SETTINGS
            if spec.metadata["role"] == "identity"
        }
        text = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


# What each stage decides for itself, or a pipeline leaves as it is.
_DECIDED = frozenset(
    [
        "checkpoint",
        "regime",
        "seed",
        "context",
        "weights",
        "adapter",
        "repeat_prompt",
        "patch",
        "objective",
        "causal_anchor",
    ]
)


def _own_settings() -> list[Field[Any]]:
    return [spec for spec in fields(PipelineConfig) if spec.name not in ("evaluation", "training")]


def _known(settings: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    names = {spec.name for spec in fields(config_class)}
    return {name: value for name, value in settings.items() if name in names}


def _all_settings() -> tuple[Field[Any], ...]:
    """The pipeline's own settings, those of its evaluations, those that only fine-tunes have."""
    settings = {spec.name: spec for spec in _own_settings()}
    reworded = {spec.name: spec for spec in fields(_Reworded)}
    for spec in (*fields(EvalConfig), *fields(FinetuneConfig)):
        if spec.name not in _DECIDED:
            settings.setdefault(spec.name, reworded.get(spec.name, spec))
    return tuple(settings.values())


PipelineConfig.SETTINGS = _all_settings()


@dataclass(frozen=True)
class Stage:
    """One run of the pipeline. ``trained_by`` names the stage whose checkpoint it evaluates."""

    key: str
    title: str
    config: EvalConfig | FinetuneConfig
    trained_by: str | None = None


def from_preset(given: Mapping[str, Any], preset: str = PUBLISHED) -> PipelineConfig:
    """The preset's settings, then those that were given. Raises UserError for an unknown one."""
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    return PipelineConfig(**{**PRESETS[preset], **given})


def plan(config: PipelineConfig) -> list[Stage]:
    """The stages in order; those that use one checkpoint stand together.

    3B and 3C of a seed differ in objective and mask alone: data, order, steps and seed are shared.
    """
    # The seed is the training's; items are drawn with seed 0, the same for all seeds.
    evaluation, training = config.evaluation, config.training
    regimes = (("bidirectional prefill", config.regime), ("causal", "causal"))
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
    optional = {"distill": config.distill, "3A": config.leaky}
    objectives = ["3B", "3C", *(objective for objective, wanted in optional.items() if wanted)]
    for seed in range(config.seed, config.seed + config.seeds):
        for objective in objectives:
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
            for mode, regime in regimes:
                stage = "stage 4" if regime != "causal" else "non-prefill compare"
                stages.append(
                    Stage(
                        f"{key}-{'causal' if regime == 'causal' else 'regime'}",
                        f"{stage}, {shown} checkpoint, seed {seed}, {mode}",
                        replace(evaluation, regime=regime),
                        trained_by=key,
                    )
                )
    return stages
