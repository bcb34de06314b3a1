"""Arms: the base model and each way of fine-tuning it, and which of them a run belongs to.

    arm = base, 3B, 3C, 3A (leaky) or distill, with its recipe

An evaluation says which checkpoint it used (``training_record``, else the checkpoint's path), and
the fine-tune's own folder says how that was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from bidir_core.run_layout import FINETUNE_DIRS
from bidir_core.store import Run

BASE = "base"
CAUSAL = "causal"
UNKNOWN = "unknown"
ORDER = (BASE, "3B", "3C", "distill", "3A", UNKNOWN)
NAMES = {
    BASE: "base",
    "3A": "3A (leaky)",
    "distill": "distil",
    UNKNOWN: "a checkpoint of unknown training",
}
CODES = {folder: code for code, folder in FINETUNE_DIRS.items()}
# What else, beside objective, regime and seed, makes a fine-tune another one.
RECIPE_FIELDS = (
    "method", "steps", "lr", "batch_samples", "data", "causal_anchor", "max_tokens", "warmup_steps",
    "lora_rank", "lora_alpha", "lora_dropout", "final_lr_fraction", "weight_decay", "beta2", "clip",
    "over_long", "append_eos", "decontaminate", "chat_template",
)  # fmt: skip
_LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout")


@dataclass(frozen=True)
class Arm:
    """The base model or one way of fine-tuning it. Runs of an arm differ in their seed only."""

    code: str
    regime: str | None = None  # that it was trained under; None if nobody recorded it
    recipe: tuple[tuple[str, str], ...] = ()
    variant: str = field(default="", compare=False)

    @property
    def title(self) -> str:
        """``3B``, ``3B (method lora)``, ``3A (leaky)``."""
        name = NAMES.get(self.code, self.code)
        return f"{name} ({self.variant})" if self.variant else name

    @property
    def leaky(self) -> bool:
        return self.code == "3A"


def arm_of(run: Run) -> tuple[Arm, int]:
    """The arm and training seed of an evaluation or of a fine-tune."""
    return finetuned_arm(run) if run.stage in CODES else evaluated_arm(run, {})[:2]


def trained_run_id(run: Run) -> str | None:
    """The id of the fine-tune whose checkpoint an evaluation used, if it can be told."""
    recorded = (run.config.get("training_record") or {}).get("run")
    if isinstance(recorded, str):
        return recorded
    parts = PurePath(str(run.settings.get("checkpoint") or "")).parts
    for stage, folder in pairwise(parts):
        if stage in CODES:
            return f"{stage}/{folder}"
    return None


def evaluated_arm(run: Run, known: Mapping[str, Run]) -> tuple[Arm, int, Run | None]:
    """The arm and training seed of an evaluation, and the fine-tune behind it, if found."""
    if run.settings.get("checkpoint") is None:
        return Arm(BASE), 0, None
    trained_id = trained_run_id(run)
    trained = known.get(trained_id or "")
    if trained is None and trained_id is not None:
        beside = Run(run.path.parent.parent / Path(trained_id))
        trained = beside if beside.state == "done" else None
    if trained is not None:
        return (*finetuned_arm(trained), trained)
    record = run.config.get("training_record") or {}
    code = record.get("objective") or CODES.get((trained_id or "").split("/")[0], UNKNOWN)
    recipe = _recipe(record) or (("checkpoint", str(run.settings["checkpoint"])),)
    return Arm(code, record.get("regime"), recipe), _seed(record), None


def finetuned_arm(run: Run) -> tuple[Arm, int]:
    """The arm and training seed of a fine-tune."""
    settings = run.settings
    code = settings.get("objective") or CODES[run.stage]
    return Arm(code, settings.get("regime"), _recipe(settings)), _seed(settings)


def _seed(settings: Mapping[str, Any]) -> int:
    seed = settings.get("seed")
    return seed if isinstance(seed, int) else 0


def _recipe(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    full = settings.get("method") != "lora"
    return tuple(
        (name, str(settings[name]))
        for name in RECIPE_FIELDS
        if settings.get(name) is not None and not (full and name in _LORA_ONLY)
    )


def name_variants(arms: Iterable[Arm]) -> dict[Arm, Arm]:
    """Say in ``variant`` what sets each arm apart from the main one of its objective."""
    named: dict[Arm, Arm] = {}
    by_code: dict[str, list[Arm]] = {}
    for arm in dict.fromkeys(arms):
        by_code.setdefault(arm.code, []).append(arm)
    for arms_of_code in by_code.values():
        main = min(arms_of_code, key=_plainness)
        for arm in arms_of_code:
            ours, theirs = dict(arm.recipe), dict(main.recipe)
            changed = [
                f"{name.replace('_', ' ')} {ours.get(name, 'unknown')}"
                for name in dict.fromkeys([*ours, *theirs])
                if ours.get(name) != theirs.get(name)
                and (name not in _LORA_ONLY or ours.get("method") == theirs.get("method"))
            ]
            if arm.regime != main.regime:
                changed.insert(0, f"trained under {arm.regime}")
            named[arm] = replace(arm, variant=", ".join(changed))
    return named


def _plainness(arm: Arm) -> tuple[Any, ...]:
    """The main arm of an objective: full fine-tune, plain regime, most steps."""
    recipe = dict(arm.recipe)
    steps = recipe.get("steps", "0")
    return (
        recipe.get("method") == "lora",
        arm.regime not in ("bidirectional", CAUSAL, None),
        -int(steps) if steps.isdigit() else 0,
        arm.recipe,
    )
