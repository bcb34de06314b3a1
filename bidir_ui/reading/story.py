"""Which runs tell the story on the Overview, for one model and one set of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bidir_core.analyse import effects, stats
from bidir_ui.kit import fmt
from bidir_ui.reading import pair, seeds
from bidir_ui.reading.data import RunInfo
from bidir_ui.reading.seeds import Difference, Group

STAGE1, STAGE2 = "stage1_vanilla_eval", "stage2_prefill_bidir_eval"

STAGE4, NONPREFILL = "stage4_postft_eval", "nonprefill_compare"


@dataclass(frozen=True)
class Story:
    """The runs behind the five panels; what does not exist yet is None or empty."""

    a: RunInfo | None
    b: RunInfo | None
    regimes: tuple[RunInfo, ...]
    repair: Repair | None
    models: tuple[tuple[RunInfo, RunInfo], ...]
    whole: tuple[RunInfo, tuple[RunInfo, ...]] | None
    published: dict[str, RunInfo]


def tell(runs: tuple[RunInfo, ...]) -> Story:
    """Collect the runs of the story around the default pair; imported ones are not told about."""
    runs = tuple(run for run in runs if not run.is_imported)
    a, b = pair.default_pair(runs)
    done = [run for run in runs if run.is_done and run.has_items and run.context == "full"]
    done = [run for run in done if not run.variant]  # prompts as they are

    dialled = [
        run
        for run in done
        if a is not None
        and run.same_items(a)
        and run.stage == STAGE2
        and run.regime.startswith("bidirectional")  # causal:hide=J lets nothing look ahead
        and not run.checkpoint
        and run != b
    ]
    return Story(
        a=a,
        b=b,
        regimes=tuple(_first_of_each(dialled, lambda run: run.regime)),
        repair=find(runs, a) if a else None,
        models=tuple(_model_pairs(done, a)),
        whole=_whole(done, a),
        published={run.stage: run for run in reversed(runs) if run.is_reference},
    )


def _whole(done: list[RunInfo], a: RunInfo | None) -> tuple[RunInfo, tuple[RunInfo, ...]] | None:
    """The same model on whole validation sets: its causal run, and the other regimes'.

    Both in one number format, float32 before others, and one that has most regimes."""
    if a is None or a.limit is None:
        return None
    mine = [run for run in done if run.model == a.model and run.limit is None]
    mine = [run for run in mine if not run.checkpoint]
    found = []
    for base in (run for run in mine if run.stage == STAGE1):
        others = [run for run in mine if run.stage == STAGE2 and run.same_items(base)]
        others = [run for run in others if run.regime.startswith("bidirectional")]
        others.sort(key=lambda run: len(run.regime))  # plain bidirectional first; a stable sort
        if others:
            found.append((base, tuple(_first_of_each(others, lambda run: run.regime))))
    return max(found, key=lambda one: (one[0].dtype == "float32", len(one[1])), default=None)


def _first_of_each(runs: list[RunInfo], key) -> list[RunInfo]:
    """Runs are newest first: the newest of each kind."""
    found: dict[object, RunInfo] = {}
    for run in runs:
        found.setdefault(key(run), run)
    return list(found.values())


def _model_pairs(done: list[RunInfo], a: RunInfo | None) -> list[tuple[RunInfo, RunInfo]]:
    """Per model, the newest causal and plain bidirectional run on the same items, one dtype."""
    out: dict[str, tuple[RunInfo, RunInfo]] = {}
    firsts = [run for run in done if run.stage == STAGE1]
    # The default pair's own extent first, so that models are compared on the same items.
    firsts.sort(key=lambda run: a is None or (run.limit != a.limit, run.dtype != a.dtype))
    for first in firsts:
        for second in done:
            plain = second.stage == STAGE2 and second.regime == "bidirectional"
            if plain and second.same_items(first):
                out.setdefault(first.model, (first, second))
    return list(out.values())


# Whether training repairs the damage: which runs say so, and what they allow to be claimed.

TUNED_STAGES = ("stage4_postft_eval", "nonprefill_compare")

BIDIRECTIONAL, CAUSAL = "bidirectional", "causal"

CELLS = tuple((arm, regime) for regime in (BIDIRECTIONAL, CAUSAL) for arm in ("3B", "3C"))


@dataclass(frozen=True)
class Repair:
    """3B and its control 3C (same recipe), and the base, over the same items and dtype.

    ``cells`` is keyed (arm, regime); each holds runs with items, one for each training seed.
    ``others``: further fine-tunes evaluated on these items (LoRA, distillation ..), no part of
    the 2x2.
    """

    base: RunInfo | None
    untrained: RunInfo | None
    cells: dict[tuple[str, str], Group] = field(default_factory=dict)
    others: tuple[RunInfo, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What the complete study still lacks, in words."""
        out = [f"{arm} under {regime}" for arm, regime in CELLS if (arm, regime) not in self.cells]
        base = ((self.base, "stage 1"), (self.untrained, "stage 2"))
        return [name for run, name in base if run is None] + out

    @property
    def some(self) -> RunInfo:
        """A run that stands for the items and the dtype."""
        return next(iter([*(group.some for group in self.cells.values()), *self.others]))

    @property
    def runs(self) -> list[RunInfo]:
        """Every evaluation of a fine-tune with items, 3B and 3C first."""
        first = [run for cell in CELLS if cell in self.cells for run in self.cells[cell].runs]
        return first + [run for run in self.others if run.has_items]

    @property
    def every(self) -> list[Group]:
        """Every evaluation of a fine-tune, with items or without, seeds together."""
        cells = [run for group in self.cells.values() for run in group.runs]
        return seeds.groups([*cells, *self.others])

    @property
    def by_accuracy(self) -> dict[int, float]:
        """The interaction of each training seed from its accuracies alone, for all seeds that the
        four cells have, with items or without."""
        if len(self.cells) < len(CELLS):
            return {}
        four = []
        for cell in CELLS:
            some = self.cells[cell].some
            same = (g for g in self.every if (g.some.arm, g.some.regime) == (some.arm, some.regime))
            runs = {run.train_seed: run.macro.get("acc") for group in same for run in group.runs}
            four.append({seed: value for seed, value in runs.items() if value is not None})
        shared = sorted(set.intersection(*map(set, four)))
        return {
            seed: four[0][seed] - four[1][seed] - four[2][seed] + four[3][seed] for seed in shared
        }

    @property
    def where(self) -> str:
        """Which items, and the number format: what the reader must know before comparing."""
        return items_words(self.some)

    @property
    def seeds_words(self) -> str:
        """``training seed 0``, ``training seeds 0, 1, 2``; empty without the 2x2."""
        found = sorted({run.train_seed for group in self.cells.values() for run in group.runs})
        plural = "s" if len(found) > 1 else ""
        return f"training seed{plural} {', '.join(map(str, found))}" if found else ""

    @property
    def contrasts(self) -> dict[str, Difference]:
        """The paired differences that carry the story; those that cannot be made are absent."""
        base = Group((self.base,)) if self.base else None
        ours, control = self.cells.get(("3B", BIDIRECTIONAL)), self.cells.get(("3C", BIDIRECTIONAL))
        ours_causal, left = self.cells.get(("3B", CAUSAL)), self.cells.get(("3C", CAUSAL))
        wanted = {
            "stage4": (base, ours),
            "control": (base, control),
            "equal": (left, ours),
            "bidirectional": (control, ours),
            "causal": (left, ours_causal),
        }
        return {name: row for name, pair in wanted.items() if (row := seeds.difference(*pair))}

    @property
    def interaction(self) -> effects.Contrast | None:
        """(3B - 3C under bidirectional) - (3B - 3C under causal)."""
        return seeds.interaction([self.cells.get(cell) for cell in CELLS])


def items_words(run: RunInfo) -> str:
    sets = f"limit {run.limit} per task" if run.limit else "the whole validation sets"
    dtype = f", {run.dtype}" if run.dtype else ""
    return f"{sets} (n = {fmt.count(run.n_items)}){dtype}"


def find(runs: Sequence[RunInfo], like: RunInfo) -> Repair | None:
    """The fullest study of this model, of all weights rather than adapters: on the items of ``like``
    if there is one, else on whole sets. 3B and 3C belong together only with the same items, dtype
    and recipe."""
    done = [
        run for run in runs if run.is_done and run.context == "full" and run.model == like.model
    ]
    tuned = [run for run in done if run.stage in TUNED_STAGES and run.arm and run.checkpoint]
    found: dict[tuple[Any, ...], dict[tuple[str, str], dict[int, RunInfo]]] = {}
    for run in tuned:  # newest first
        assert run.arm is not None
        mine = found.setdefault((run.item_set, run.dtype, run.arm.recipe), {})
        if is_cell(run):
            mine.setdefault((run.arm.code, run.regime), {}).setdefault(run.train_seed, run)
    studies = []
    for key, by_cell in found.items():
        same = [run for run in done if (run.item_set, run.dtype) == key[:2]]
        base = [run for run in same if run.has_items and not run.checkpoint]
        cells = {
            cell: Group(tuple(by[seed] for seed in sorted(by))) for cell, by in by_cell.items()
        }
        taken = {run.id for group in cells.values() for run in group.runs}
        studies.append(
            Repair(
                base=next((r for r in base if r.stage == "stage1_vanilla_eval"), None),
                untrained=next(
                    (
                        r
                        for r in base
                        if r.stage == "stage2_prefill_bidir_eval" and r.regime == BIDIRECTIONAL
                    ),
                    None,
                ),
                cells=cells,
                others=tuple(r for r in tuned if r in same and r.id not in taken),
            )
        )
    return max(studies, key=lambda study: _merit(study, like), default=None)


def is_cell(run: RunInfo) -> bool:
    """Whether a run can be one of the four of the 2x2."""
    arm = run.arm
    plain = (
        arm is not None and arm.code in ("3B", "3C") and arm.regime in (None, BIDIRECTIONAL, CAUSAL)
    )
    return plain and run.has_items and run.regime in (BIDIRECTIONAL, CAUSAL)


def _merit(study: Repair, like: RunInfo) -> tuple[object, ...]:
    some = study.some
    return (
        -len(study.missing),
        some.method != "lora",  # what a fine-tune can do comes before how small it may be
        some.item_set == like.item_set,
        some.dtype == like.dtype,
        some.limit is None,
        some.n_items,
        sum(len(group.runs) for group in study.cells.values()),
        some.created,
    )


def title(study: Repair) -> str:
    """What the numbers allow to be said: a claim of repair needs the control and the interaction.

    "Repairs" is: not shown to lie more than the margin below stage 1, nor below the control that
    was trained alike and left causal. "Beyond" and "does not" are read off paired intervals.
    """
    rows, found = study.contrasts, study.interaction
    if "stage4" not in rows or found is None or "control" not in rows:
        return "Does training repair it, and does the control?"
    e, equal = found.estimate, rows.get("equal")
    whole = rows["stage4"].low > -stats.MARGIN and not (equal and equal.high < 0)
    control_whole = rows["control"].low > -stats.MARGIN
    if e.high < 0:
        return "The control gains more than the repair"
    if e.low <= 0:
        both = whole and control_whole
        return "Training repairs it, and so does the control" if both else "Repair is undecided"
    if not whole:
        return "Training repairs part of it"
    if rows["control"].high < 0:
        return "Training repairs it, and the control does not"
    return "Training repairs it, more than the control"
