"""Which runs tell the story on the Overview, for one model and one set of items."""

from __future__ import annotations

from dataclasses import dataclass

from bidir_ui import pair
from bidir_ui.data import RunInfo

STAGE1, STAGE2 = "stage1_vanilla_eval", "stage2_prefill_bidir_eval"
STAGE4, NONPREFILL = "stage4_postft_eval", "nonprefill_compare"


@dataclass(frozen=True)
class Story:
    """The runs behind the five panels; what does not exist yet is None or empty."""

    a: RunInfo | None
    b: RunInfo | None
    regimes: tuple[RunInfo, ...]
    tuned: tuple[RunInfo, ...]
    models: tuple[tuple[RunInfo, RunInfo], ...]
    whole: tuple[RunInfo, tuple[RunInfo, ...]] | None

    def tuned_run(self, name: str, regime: str) -> RunInfo | None:
        """The newest evaluation of one fine-tune (3B, 3C ..) under one regime."""
        return next((r for r in self.tuned if arm(r) == name and r.regime == regime), None)

    published: dict[str, RunInfo]


ARMS = (
    ("stage3_finetune", "3B"),
    ("stage3c_", "3C"),
    ("stage3a_", "3A"),
    ("stage3d_", "3D"),
)


def arm(run: RunInfo) -> str:
    """Which fine-tune a run evaluates, from its checkpoint's folder."""
    return next((name for mark, name in ARMS if mark in run.checkpoint), "fine-tuned")


def tell(runs: tuple[RunInfo, ...]) -> Story:
    """Collect the runs of the story around the default pair."""
    a, b = pair.default_pair(runs)
    done = [run for run in runs if run.is_done and run.has_items and run.context == "full"]

    def alike(run: RunInfo) -> bool:
        return a is not None and (run.model, run.limit) == (a.model, a.limit)

    dialled = [
        run
        for run in done
        if alike(run) and run.stage in (STAGE2, "lab") and not run.checkpoint and run != b
    ]
    tuned = [
        run for run in done if alike(run) and run.stage in (STAGE4, NONPREFILL) and run.checkpoint
    ]
    return Story(
        a=a,
        b=b,
        regimes=tuple(_first_of_each(dialled, lambda run: run.regime)),
        tuned=tuple(_first_of_each(tuned, lambda run: (run.checkpoint, run.regime))),
        models=tuple(_model_pairs(done, a)),
        whole=_whole(done, a),
        published={run.stage: run for run in reversed(runs) if run.is_reference},
    )


def _whole(done: list[RunInfo], a: RunInfo | None) -> tuple[RunInfo, tuple[RunInfo, ...]] | None:
    """The same model on whole validation sets: its causal run, and the other regimes'."""
    if a is None or a.limit is None:
        return None
    mine = [
        run for run in done if run.model == a.model and run.limit is None and not run.checkpoint
    ]
    base = next((run for run in mine if run.stage == STAGE1), None)
    others = [run for run in mine if run.stage == STAGE2]
    others.sort(key=lambda run: len(run.regime))  # plain bidirectional first; the sort is stable
    return (
        (base, tuple(_first_of_each(others, lambda run: run.regime))) if base and others else None
    )


def _first_of_each(runs: list[RunInfo], key) -> list[RunInfo]:
    """Runs are newest first: the newest of each kind."""
    found: dict[object, RunInfo] = {}
    for run in runs:
        found.setdefault(key(run), run)
    return list(found.values())


def _model_pairs(done: list[RunInfo], a: RunInfo | None) -> list[tuple[RunInfo, RunInfo]]:
    """Per model, the newest causal and plain bidirectional run with the same limit."""
    out: dict[str, tuple[RunInfo, RunInfo]] = {}
    firsts = [run for run in done if run.stage == STAGE1]
    # The default pair's own extent first, so that models are compared on the same items.
    firsts.sort(key=lambda run: a is None or run.limit != a.limit)
    for first in firsts:
        for second in done:
            same = (second.model, second.limit) == (first.model, first.limit)
            if second.stage == STAGE2 and second.regime == "bidirectional" and same:
                out.setdefault(first.model, (first, second))
    return list(out.values())
