"""Which runs make a study: base and fine-tunes, under which regimes, with which seeds.

    cell = (arm, regime) -> one run per training seed

Only runs over the same items belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from bidir_core.analyse.pairing import repeats
from bidir_core.common.errors import UserError
from bidir_core.regimes import parse_regime
from bidir_core.runs.layout import EVAL_DIRS, FINETUNE_DIRS, LAB
from bidir_core.runs.run import Run

# Settings that must agree for two evaluations to hold the same items in the same prompts; their
# values in runs that do not record them.
_ITEM_FIELDS: dict[str, Any] = {
    "model": None,
    "revision": None,
    "tasks": [],
    "split": "validation",
    "limit": None,
    "items_file": None,
    "sample": "first",
    "fold": "all",
    "chat_template": False,
    "num_fewshot": 0,
    "repeat_prompt": 1,
}


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


Cell = tuple[Arm, str]


@dataclass(frozen=True)
class Study:
    """The runs of one report. ``cells`` map (arm, regime) to runs by training seed."""

    model: str
    regime: str
    cells: dict[Cell, dict[int, Run]]
    finetunes: dict[Arm, dict[int, Run]]
    floor: Run | None
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def base(self) -> Arm:
        return Arm(BASE)

    @property
    def arms(self) -> list[Arm]:
        """Every arm with an evaluation or a fine-tune, base first, the leaky one last."""
        arms = dict.fromkeys([*(arm for arm, _ in self.cells), *self.finetunes])
        return sorted(arms, key=lambda arm: (ORDER.index(arm.code), arm.variant))

    def trained(self, *codes: str) -> list[Arm]:
        return [arm for arm in self.arms if arm.code in codes]

    def runs(self, arm: Arm, regime: str) -> dict[int, Run]:
        return self.cells.get((arm, regime), {})

    def own_regime(self, arm: Arm) -> str:
        """The bidirectional regime that an arm is judged under."""
        if arm.regime is not None and parse_regime(arm.regime).bidirectional:
            return arm.regime
        return self.regime

    def control_of(self, arm: Arm) -> Arm | None:
        """The causal control with the same recipe, or None."""
        controls = [control for control in self.trained("3C") if control.recipe == arm.recipe]
        return controls[0] if controls else None

    def main_pair(self) -> tuple[Arm | None, Arm | None]:
        """The 3B arm of which most was run, its control included, and that control: first by cells,
        then by training seeds that hold items in each."""

        def cells_and_seeds(arm: Arm) -> tuple[int, int]:
            control, regimes = self.control_of(arm), (self.own_regime(arm), CAUSAL)
            arms = [arm] if control is None else [arm, control]
            cells = [self.runs(each, regime) for each in arms for regime in regimes]
            seeds = [sum(run.has_items for run in by_seed.values()) for by_seed in cells if by_seed]
            return len(seeds), min(seeds, default=0)

        main = max(self.trained("3B"), key=cells_and_seeds, default=None)
        control = self.control_of(main) if main else next(iter(self.trained("3C")), None)
        return main, control

    def regimes(self, arm: Arm) -> list[str]:
        """The regimes an arm was evaluated under, without causal, the study's own first."""
        regimes = [r for cell_arm, r in self.cells if cell_arm == arm and r != CAUSAL]
        return sorted(regimes, key=lambda r: (r != self.own_regime(arm), r != self.regime, r))

    def bidirectional_regimes(self, arm: Arm) -> list[str]:
        """Those of them that look ahead: not ``causal:hide=J``."""
        return [regime for regime in self.regimes(arm) if parse_regime(regime).bidirectional]

    @property
    def all_runs(self) -> list[Run]:
        runs = [run for by_seed in self.cells.values() for run in by_seed.values()]
        runs += [run for by_seed in self.finetunes.values() for run in by_seed.values()]
        return runs + ([self.floor] if self.floor is not None else [])

    @property
    def some_run(self) -> Run:
        """A run that stands for the settings all evaluations share."""
        return next(run for by_seed in self.cells.values() for run in by_seed.values())


def ordered_cells(study: Study) -> list[Cell]:
    """Every cell: causal first within an arm, the arm's own regime next."""
    cells = []
    for arm in study.arms:
        cells += [(arm, r) for r in [CAUSAL, *study.regimes(arm)] if study.runs(arm, r)]
    return cells


def make_study(
    runs: Iterable[Run], *, others: Sequence[Run] = (), mixed_dtypes: bool = True
) -> Study:
    """Sort runs into a study. Raises UserError if none of them is a finished evaluation.

    If the runs are over several sets of items, the set that fills most cells is reported and the
    others are listed as left out. ``others``: runs that may serve as fine-tunes and as the
    no-context floor although nobody asked for them. ``mixed_dtypes=False`` also keeps runs of
    different dtypes apart.
    """
    left_out: list[tuple[str, str]] = []
    evaluations, finetunes, floors = [], [], []
    for run in {run.path: run for run in runs}.values():
        why = _unusable(run)
        if why is not None:
            left_out.append((run.id, why))
        elif run.stage in CODES:
            finetunes.append(run)
        elif run.settings.get("context") == "none":
            floors.append(run)
        else:
            evaluations.append(run)
    if not evaluations:
        reasons = "".join(f"; {run}: {why}" for run, why in left_out[:3])
        raise UserError(
            "a report needs at least one finished evaluation (stages 1, 2, 4 or the non-prefill "
            f"compare){reasons}"
        )
    finetunes_by_id = {run.id: run for run in others if run.stage in CODES}
    finetunes_by_id.update((run.id, run) for run in finetunes)
    groups: dict[Any, dict[Cell, dict[int, Run]]] = {}
    used_finetunes = list(finetunes)  # and those whose checkpoints were evaluated
    for run in sorted(evaluations, key=_age):
        arm, seed, trained = evaluated_arm(run, finetunes_by_id)
        if trained is not None:
            used_finetunes.append(trained)
        cells = groups.setdefault(items_key(run, dtype=not mixed_dtypes), {})
        by_seed = cells.setdefault((arm, run.regime), {})
        older = by_seed.get(seed)
        if older is not None and older.has_items and not run.has_items:
            left_out.append((run.id, f"superseded by {older.id}, the same but with its items"))
            continue
        if older is not None:
            left_out.append((older.id, f"superseded by {run.id}, the same but newer"))
        by_seed[seed] = run
    best = max(groups, key=lambda key: _merit(groups[key]))
    for key, cells in groups.items():
        if key != best:
            why = "over other items than the rest of this report"
            left_out += [(run.id, why) for by_seed in cells.values() for run in by_seed.values()]
    chosen = groups[best]
    in_use = {arm for arm, _ in chosen}
    trained_runs: dict[Arm, dict[int, Run]] = {}
    for run in sorted({run.path: run for run in used_finetunes}.values(), key=_age):
        arm, seed = finetuned_arm(run)
        if arm in in_use or run in finetunes:
            trained_runs.setdefault(arm, {})[seed] = run
    base_runs = chosen.get((Arm(BASE), CAUSAL), {})
    floor = _floor(next(iter(base_runs.values()), None), [*others, *floors])
    names = name_variants([*in_use, *trained_runs])
    return Study(
        model=next(iter(next(iter(chosen.values())).values())).model,
        regime=main_regime(chosen),
        cells={
            (names[arm], regime): dict(sorted(by_seed.items()))
            for (arm, regime), by_seed in chosen.items()
        },
        finetunes={names[arm]: dict(sorted(runs.items())) for arm, runs in trained_runs.items()},
        floor=floor,
        left_out=tuple(left_out),
    )


def items_key(run: Run, *, dtype: bool = False) -> tuple[tuple[str, str], ...]:
    """What two evaluations must share to hold the same items; the model first."""
    settings = run.settings
    values = [
        (name, json.dumps(settings.get(name, default))) for name, default in _ITEM_FIELDS.items()
    ]
    if settings.get("sample") == "random" or settings.get("num_fewshot"):
        values.append(("seed", json.dumps(settings.get("seed"))))
    if dtype:
        values.append(("dtype", json.dumps(run.config.get("dtype") or settings.get("dtype"))))
    return tuple(values)


def is_usual(settings: Mapping[str, Any]) -> bool:
    """Whether prompts are asked as they are: whole, once, without template, patch or another BOS."""
    plain = not settings.get("chat_template") and not settings.get("patch")
    whole = settings.get("context") in (None, "full") and repeats(settings) == 1
    return plain and whole and settings.get("bos") in (None, "auto")


def swept(evaluations: Sequence[Run], runs: Iterable[Run]) -> list[Run]:
    """Points of finished sweeps in place of evaluations that were not made: the untrained model
    under causal, bidirectional and ``sink=1``. ``runs``: newest first."""
    made = {
        (items_key(run, dtype=True), run.regime)
        for run in evaluations
        if run.stage != LAB and not run.settings.get("checkpoint") and is_usual(run.settings)
    }
    sweeps = [
        [
            point
            for point in run.points()
            if is_usual(point.settings)
            and not point.settings.get("checkpoint")
            and point.state == "done"
        ]
        for run in runs
        if run.stage == LAB and run.state == "done"
    ]
    found = []
    for points in sorted(sweeps, key=len, reverse=True):  # the fullest first, as the scorecard does
        for point in points:
            key = items_key(point, dtype=True), point.regime
            if point.regime in SWEPT and key not in made:
                made.add(key)
                found.append(point)
    return found


def _unusable(run: Run) -> str | None:
    if run.state == "corrupt":
        return f"corrupt: {run.error}"
    if run.state not in ("done", "reference"):
        return f"not finished ({run.state})"
    if run.stage not in (*EVAL_DIRS, *CODES) and not run.is_point:
        return "neither an evaluation nor a fine-tune"
    if run.stage in EVAL_DIRS or run.is_point:
        macro = (run.metrics or {}).get("macro")
        if not isinstance(macro, dict) or not isinstance(macro.get("acc"), int | float):
            return "it holds no macro accuracy"
    if run.settings.get("context") == "shuffled":
        return "scored with other items' contexts"
    return None


def _merit(cells: Mapping[Cell, Mapping[int, Run]]) -> tuple[int, int, int, str]:
    """More kinds of cells, then more items, then more runs, then newer ones."""
    kinds = {(arm.code, regime == CAUSAL) for arm, regime in cells}
    runs = [run for by_seed in cells.values() for run in by_seed.values()]
    n = min(int((run.metrics or {}).get("n_items") or 0) for run in runs)
    return len(kinds), n, len(runs), max(run.path.name for run in runs)


def main_regime(cells: Mapping[Cell, Any]) -> str:
    """The regime that a study is about unless somebody says which: plain, else the commonest."""
    regimes = [regime for _, regime in cells if parse_regime(regime).bidirectional]
    if not regimes or "bidirectional" in regimes:
        return "bidirectional"
    return max(dict.fromkeys(regimes), key=regimes.count)


def _floor(stage1: Run | None, candidates: Sequence[Run]) -> Run | None:
    """The newest no-context run of the base model that holds stage 1's items."""
    if stage1 is None or stage1.is_reference:
        return None
    stage1_items = dict(items_key(stage1))
    fitting = []
    for run in candidates:
        if run.settings.get("context") != "none" or _unusable(run) is not None:
            continue
        items = dict(items_key(run))
        # Without a context nothing is repeated, and a run without a limit holds all items.
        items["repeat_prompt"] = stage1_items["repeat_prompt"]
        if items["limit"] == "null":
            items["limit"] = stage1_items["limit"]
        if run.settings.get("checkpoint") is None and items == stage1_items:
            fitting.append(run)
    return max(fitting, key=_age, default=None)


def _age(run: Run) -> tuple[str, str]:
    return run.path.name, run.id


# Arms: the base model and each way of fine-tuning it, and which of them a run belongs to.

BASE = "base"
CAUSAL = "causal"
SWEPT = (CAUSAL, "bidirectional", "bidirectional:sink=1")
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
_TRAINING = ("method", "steps", "lr", "batch_samples", "data", "causal_anchor", "max_tokens")
_LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout")
_OPTIMISER = ("final_lr_fraction", "weight_decay", "beta2", "clip")
_TEXTS = ("over_long", "append_eos", "decontaminate", "chat_template")
RECIPE_FIELDS = (*_TRAINING, "warmup_steps", *_LORA_ONLY, *_OPTIMISER, *_TEXTS)


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


def evaluated_arm(run: Run, finetunes: Mapping[str, Run]) -> tuple[Arm, int, Run | None]:
    """The arm and training seed of an evaluation, and the fine-tune behind it, if found."""
    if run.settings.get("checkpoint") is None:
        return Arm(BASE), 0, None
    trained_id = trained_run_id(run)
    trained = finetunes.get(trained_id or "")
    if trained is None and trained_id is not None:
        sibling = Run(run.path.parent.parent / Path(trained_id))
        trained = sibling if sibling.state == "done" else None
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
    is_full = settings.get("method") != "lora"
    # Runs made before the setting existed learned the last turn.
    turns = (("assistant_turns", "all"),) if settings.get("assistant_turns") == "all" else ()
    return turns + tuple(
        (name, str(settings[name]))
        for name in RECIPE_FIELDS
        if settings.get(name) is not None and not (is_full and name in _LORA_ONLY)
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
            recipe, main_recipe = dict(arm.recipe), dict(main.recipe)
            changed = [
                f"{name.replace('_', ' ')} {recipe.get(name, 'unknown')}"
                for name in dict.fromkeys([*recipe, *main_recipe])
                if recipe.get(name) != main_recipe.get(name)
                and (name not in _LORA_ONLY or recipe.get("method") == main_recipe.get("method"))
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
