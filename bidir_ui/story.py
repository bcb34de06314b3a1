"""Which runs tell the story on the Overview, for one model and one set of items."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_ui import pair, repair
from bidir_ui.data import RunInfo
from bidir_ui.repair import Repair

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

    dialled = [
        run
        for run in done
        if a is not None
        and run.same_items(a)
        and run.stage == STAGE2
        and not run.checkpoint
        and run != b
    ]
    return Story(
        a=a,
        b=b,
        regimes=tuple(_first_of_each(dialled, lambda run: run.regime)),
        repair=repair.find(runs, a) if a else None,
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
