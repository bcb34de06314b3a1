"""The numbers of docs/FINDINGS.md, computed from the committed runs.

    python -m scripts.findings            # writes them into the page
    python -m scripts.findings --check    # says whether the page has them; exit 1 if not

The page's words are written by hand; what stands between ``<!-- findings: NAME -->`` and
``<!-- end -->`` is written by this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bidir_core import stats, words
from bidir_core.compare import compare
from bidir_core.lab.control_answers import above
from bidir_core.lab.controls import CONTROLS
from bidir_core.lab.summary import Outcomes, Sweep, outcomes
from bidir_core.lab.verdicts import best, best_of_dials, percent
from bidir_core.pairing import METRICS
from bidir_core.run_layout import COMMITTED_RUNS
from bidir_core.store import Run
from scripts import blocks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "FINDINGS.md"
_BLOCK = blocks.pattern("findings")
FIRST = 500
CAUSAL, PLAIN, SINK = "causal", "bidirectional", "sink=1"
LIMIT = {
    CAUSAL: "stage1_vanilla_eval/20261122-230405_limit500",
    PLAIN: "stage2_prefill_bidir_eval/20261122-230425_limit500",
    SINK: "stage2_prefill_bidir_eval/20261122-230444_limit500-sink1",
}
FULL = {
    CAUSAL: "stage1_vanilla_eval/20261122-230504_full",
    PLAIN: "stage2_prefill_bidir_eval/20261122-230542_full",
    SINK: "stage2_prefill_bidir_eval/20261122-230622_full-sink1",
}
NO_CONTEXT = "stage1_vanilla_eval/20261122-230659_full-no-context"
SWEEP = "lab/20261123-032211_sweep-limit100"
ATTENTION = "lab/20261123-055950_attention-20-each"


def run(name: str) -> Run:
    return Run(COMMITTED_RUNS / name)


# --- the blocks ----------------------------------------------------------------------------------


def damage() -> str:
    """Causal, bidirectional and sink=1 on three sets of items, in both measures."""
    rows = []
    for metric in METRICS:
        full = _outcomes(FULL, metric)
        for title, found in (
            (f"first {FIRST} of each task", _outcomes(LIMIT, metric)),
            ("whole sets", full),
            (f"without each task's first {FIRST}", _only(full, _doc_ids() >= FIRST)),
        ):
            rows.append(
                [
                    f"`{metric}`, {title}",
                    words.count(int(found.mask(CAUSAL, PLAIN, SINK).sum())),
                    *(f"{100 * found.accuracy(name):.1f}" for name in (CAUSAL, PLAIN, SINK)),
                    _delta(found.delta(CAUSAL, PLAIN)),
                    _delta(found.delta(CAUSAL, SINK)),
                    _share(found.removed(CAUSAL, PLAIN, SINK)),
                ]
            )
    header = [
        "measure, items", "n", "causal", "bidirectional", "sink=1", "bidirectional to causal",
        "sink=1 to causal", "damage removed by sink=1",
    ]  # fmt: skip
    return _table(header, rows)


def tasks() -> str:
    """The same by task, whole sets; and what sink=1 leaves on the items past the first 500."""
    plain, sink = (compare(run(FULL[CAUSAL]), run(FULL[name])) for name in (PLAIN, SINK))
    later = _only(_outcomes(FULL, "acc"), _doc_ids() >= FIRST)
    rows = []
    for one, other in zip(plain.tasks, sink.tasks, strict=True):
        mine = later.task == one.task
        left = [later.right[name][mine] for name in (CAUSAL, SINK)]
        rest = "no items"
        if mine.any():
            rest = f"{_delta(stats.paired_delta(*left))}, n = {words.count(int(mine.sum()))}"
        rows.append(
            [
                f"`{one.task}`", words.count(one.n), _delta(one.estimate), words.p_text(one.p_holm),
                _delta(other.estimate), words.p_text(other.p_holm), rest,
            ]
        )  # fmt: skip
    header = [
        "task", "n", "bidirectional to causal", "p", "sink=1 to causal", "p",
        f"sink=1 to causal, without the first {FIRST}",
    ]  # fmt: skip
    return _table(header, rows)


def floor() -> str:
    """What contexts give at all, and how much of that is lost."""
    none, said = run(NO_CONTEXT), []
    for name in (CAUSAL, PLAIN, SINK):
        said.append(f"{name} {_delta(above(none, run(FULL[name])))}")
    kept = []
    for name in (PLAIN, SINK):
        share = compare(run(FULL[CAUSAL]), run(FULL[name]), floor=none).above_no_context
        kept.append(f"{name} keeps {_share(share)}")
    return (
        f"Points above the same model without any context (95 % CI): {', '.join(said)}. "
        f"Of what the context gives causally, {' and '.join(kept)}.\n"
    )


def sweep() -> str:
    """Every point of the committed sweep."""
    found = Sweep(run(SWEEP))
    numbers = found.outcomes(found.usual, "acc")
    assert numbers is not None
    rows = []
    for slug, point in found.points.items():
        if slug in (CAUSAL, PLAIN):
            continue
        rows.append(
            [
                f"`{point.regime.removeprefix('bidirectional:')}`",
                f"{100 * numbers.accuracy(slug):.1f}",
                _delta(numbers.delta(CAUSAL, slug)),
                _share(numbers.removed(CAUSAL, PLAIN, slug)),
            ]
        )
    whole = numbers.delta(CAUSAL, PLAIN)
    accuracy = [f"{100 * numbers.accuracy(slug):.1f}" for slug in (CAUSAL, PLAIN)]
    rows = [
        ["causal", accuracy[0], "", ""],
        ["bidirectional", accuracy[1], _delta(whole), ""],
        *rows,
    ]
    return _table(["point", "accuracy", "to causal", "damage removed"], rows)


def dials() -> str:
    """What the confirm half says of points chosen on the explore half."""
    found = Sweep(run(SWEEP))
    chosen = best(found, "acc")
    assert chosen is not None
    lines = [f"- The sweep's best point: {chosen['sentence']}"]
    lines += [
        f"- Of {kind}: {one['sentence']}" for kind, one in best_of_dials(found, "acc").items()
    ]
    return "\n".join(lines) + "\n"


def attention() -> str:
    """Where the prompt's tokens look, and how long the first one's state is, under each regime."""
    found = run(ATTENTION).metrics
    assert found is not None
    middle, rows = found["n_layers"] // 2, []
    for number, one in enumerate(found["observed"]):
        share, length = one["overall"]["prefix"], found["drift"][f"norm_{number}_first"]
        rows.append(
            [
                f"`{one['regime']}`",
                *(_mean(share[name], 0, 100, " %") for name in ("first", "future")),
                _mean(length, middle, 1, ""),
            ]
        )
    header = [
        "regime", "attention on the first token", "on tokens ahead",
        f"length of the first token's state behind layer {middle}",
    ]  # fmt: skip
    return _table(header, rows)


def controls() -> str:
    """What was fixed beforehand as refuting the story."""
    return _table(["control", "refuted by"], [[title, by] for _, title, _, by, _ in CONTROLS])


BLOCKS: Mapping[str, Callable[[], str]] = {
    one.__name__: one for one in (damage, tasks, floor, sweep, dials, attention, controls)
}


# --- how they are written ------------------------------------------------------------------------


def _outcomes(names: Mapping[str, str], metric: str) -> Outcomes:
    runs = {key: run(name) for key, name in names.items()}
    return outcomes(runs[CAUSAL], runs, metric)


def _doc_ids() -> np.ndarray:
    return run(FULL[CAUSAL]).items_table(("doc_id",)).column("doc_id").to_numpy()


def _only(found: Outcomes, mask: np.ndarray) -> Outcomes:
    """These items only; a task without any leaves the macro mean."""
    parts = {
        name: {slug: values[mask] for slug, values in getattr(found, name).items()}
        for name in ("right", "known")
    }
    return replace(found, task=found.task[mask], halves=found.halves[mask], **parts)


def _delta(estimate: stats.Estimate | None) -> str:
    assert estimate is not None
    value, low, high = (
        words.points(getattr(estimate, end), signed=True) for end in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def _mean(found: Mapping[str, list[float]], place: int, scale: float, unit: str) -> str:
    """A mean and its interval, from lists by layer."""
    value, low, high = (
        f"{scale * found[end][place]:,.{int(scale > 1)}f}" for end in ("mean", "low", "high")
    )
    return f"{value}{unit} ({low} to {high})"


def _share(share: stats.Retention | None) -> str:
    assert share is not None
    if share.value is None or share.low is None or share.high is None:
        return "not stated"
    return f"{percent(share.value)} % ({percent(share.low)} to {percent(share.high)} %)"


_table = blocks.table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    blocks.add_check(parser)
    check = parser.parse_args(arguments).check
    return blocks.write_or_check(PAGE, "findings", BLOCKS, check=check, source="the runs")


if __name__ == "__main__":
    sys.exit(main())
