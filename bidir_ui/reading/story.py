"""Which runs tell the story on the Overview, for one model and one set of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import streamlit as st

from bidir_core.analyse import selection
from bidir_core.analyse.contrasts import Contrast
from bidir_core.analyse.judgement import Findings, Repair
from bidir_core.analyse.study import CAUSAL, Arm, Study, make_study, ordered_cells
from bidir_core.runs.layout import STAGE2
from bidir_core.runs.run import Run
from bidir_ui.kit import fmt
from bidir_ui.reading.data import RunInfo
from bidir_ui.reading.seeds import Group


@dataclass(frozen=True)
class Story:
    """The runs behind the five panels; what does not exist yet is None or empty."""

    a: RunInfo | None
    b: RunInfo | None
    regimes: tuple[RunInfo, ...]
    repair: Training | None
    models: tuple[tuple[RunInfo, RunInfo], ...]
    whole: tuple[RunInfo, tuple[RunInfo, ...]] | None
    published: dict[str, RunInfo]


def tell(runs: tuple[RunInfo, ...]) -> Story:
    """Collect the runs of the story around the default pair; imported ones are not told about."""
    runs = tuple(run for run in runs if not run.is_imported)
    a, b = selection.default_pair(runs)
    if b is not None and (b.stage, b.regime) != (STAGE2, "bidirectional"):
        b = None  # two other runs may be worth comparing, but they do not tell this story
    whole = selection.whole_sets(runs, a.model) if a and a.limit is not None else None
    return Story(
        a=a,
        b=b,
        regimes=tuple(run for run in selection.dialled(runs, a) if run != b) if a else (),
        repair=find(runs, a) if a else None,
        models=tuple(selection.model_pairs(runs, a)),
        whole=(whole[0], tuple(whole[1])) if whole else None,
        published={run.stage: run for run in reversed(runs) if run.is_reference},
    )


# Whether training repairs the damage: the study of a model, and what it allows to be claimed.


@dataclass(frozen=True)
class Training:
    """The fullest study of one model: its fine-tunes, the base on the same items and dtype.

    ``findings`` are the report's own; ``infos``: the app's view of each of their runs, by path.
    """

    findings: Findings
    infos: dict[str, RunInfo] = field(repr=False)

    @property
    def study(self) -> Study:
        return self.findings.study

    @property
    def arms(self) -> tuple[Arm | None, Arm | None]:
        """3B and its control 3C of the same recipe."""
        return self.study.main_pair()

    @property
    def regime(self) -> str:
        """The bidirectional one that 3B is judged under."""
        return self.study.own_regime(self.arms[0]) if self.arms[0] else self.study.regime

    @property
    def repair(self) -> Repair | None:
        return self.findings.repair(self.arms[0]) if self.arms[0] else None

    @property
    def four(self) -> dict[tuple[str, str], Group | None]:
        """3B and 3C under both masks: the runs with items, one for each training seed."""
        named = dict(zip(("3B", "3C"), self.arms))
        return {
            (name, regime): self.group(arm, regime, with_items=True) if arm else None
            for regime in (self.regime, CAUSAL)
            for name, arm in named.items()
        }

    def group(self, arm: Arm, regime: str, *, with_items: bool = False) -> Group | None:
        """The runs of a cell; None if there are none."""
        infos = (self.infos[str(run.path)] for run in self.study.runs(arm, regime).values())
        runs = tuple(run for run in infos if run.has_items or not with_items)
        return Group(runs) if runs else None

    @property
    def base(self) -> RunInfo | None:
        group = self.group(self.study.base, CAUSAL, with_items=True)
        return group.some if group else None

    @property
    def untrained(self) -> RunInfo | None:
        group = self.group(self.study.base, self.regime, with_items=True)
        return group.some if group else None

    @property
    def missing(self) -> list[str]:
        """What the complete study still lacks, in words."""
        base = ((self.base, "stage 1"), (self.untrained, "stage 2"))
        out = [name for run, name in base if run is None]
        return out + [
            f"{a} under {regime}" for (a, regime), group in self.four.items() if not group
        ]

    @property
    def every(self) -> list[Group]:
        """Every evaluation of a fine-tune, with items or without, seeds together; 3B and 3C first."""
        cells = [cell for cell in ordered_cells(self.study) if cell[0] != self.study.base]
        cells.sort(key=lambda cell: cell[0] not in self.arms)
        return [group for cell in cells if (group := self.group(*cell))]

    @property
    def some(self) -> RunInfo:
        """A run that stands for the items and the dtype."""
        return next(iter([*filter(None, self.four.values()), *self.every])).some

    @property
    def by_accuracy(self) -> dict[int, float]:
        """The interaction of each training seed from its accuracies alone, for all seeds that the
        four cells have, with items or without."""
        arm, control = self.arms
        if arm is None or control is None or None in self.four.values():
            return {}
        return self.findings.interactions_by_accuracy(arm, control)

    @property
    def where(self) -> str:
        """Which items, and the number format: what the reader must know before comparing."""
        return items_words(self.some)

    @property
    def seeds_words(self) -> str:
        """``training seed 0``, ``training seeds 0, 1, 2``; empty without the 2x2."""
        groups = [group for group in self.four.values() if group]
        seeds = sorted({run.train_seed for group in groups for run in group.runs})
        plural = "s" if len(seeds) > 1 else ""
        return f"training seed{plural} {', '.join(map(str, seeds))}" if seeds else ""

    def difference(self, a: tuple[str, str], b: tuple[str, str]) -> Contrast | None:
        """``b`` minus ``a``, cells as (``base``, ``3B`` or ``3C``, regime), where items pair."""
        arms = {"base": self.study.base, "3B": self.arms[0], "3C": self.arms[1]}
        first, second = arms[a[0]], arms[b[0]]
        if first is None or second is None:
            return None
        contrast = self.findings.between((first, a[1]), (second, b[1]))
        return contrast if contrast is not None and contrast.basis == "paired" else None


def items_words(run: RunInfo) -> str:
    sets = f"limit {run.limit} per task" if run.limit else "the whole validation sets"
    dtype = f", {run.dtype}" if run.dtype else ""
    return f"{sets} (n = {fmt.count(run.n_items)}){dtype}"


def find(runs: Sequence[RunInfo], like: RunInfo) -> Training | None:
    """The fullest study of this model, on one set of items and in one number format; None if no
    fine-tune was evaluated."""
    mine = {
        run.path: run
        for run in runs
        if run.is_done
        and run.is_evaluation
        and run.context == "full"
        and not run.is_point
        and run.model == like.model
    }
    if not any(run.checkpoint for run in mine.values()):
        return None
    findings = _findings(tuple(mine), tuple(run.modified for run in mine.values()))
    training = Training(findings, mine)
    return training if training.every else None


@st.cache_resource(max_entries=16, show_spinner=False)
def _findings(paths: tuple[str, ...], stamps: tuple[float, ...]) -> Findings:
    return Findings(make_study(map(Run, paths), mixed_dtypes=False))


def title(training: Training) -> str:
    """What the numbers allow to be said: a claim of repair needs the control and the interaction."""
    repair = training.repair
    if repair is None or repair.interaction is None or repair.gap is None:
        return "Does training repair it, and does the control?"
    control = training.difference(("base", CAUSAL), ("3C", training.regime))
    left = control is not None and control.verdict == "worse"
    return {
        "nothing to repair": "There was nothing to repair",
        "no gain": "Training does not repair it",
        "gain undecided": "Repair is undecided",
        "repaired": "Training repairs it, "
        + ("and the control does not" if left else "more than the control"),
        "partly repaired": "Training repairs part of it",
        "repaired, level undecided": "Training repairs at least part of it",
        "no control": "Does training repair it, and does the control?",
        "repair undecided": "Repair is undecided",
        "tuning": "The control gains as much",
    }[repair.outcome]
