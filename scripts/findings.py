"""What the committed runs say, written into docs/RESULTS.md, docs/FINDINGS.md and docs/tables/.

    python -m scripts.findings            # writes it
    python -m scripts.findings --check    # says whether it stands there; exit 1 if not

The pages' words are written by hand; what stands between ``<!-- findings: NAME -->`` and
``<!-- end -->`` is written by this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.compare import compare
from bidir_core.analyse.effects import Retention
from bidir_core.analyse.pairing import METRICS
from bidir_core.analyse.phrases import JSON_WORDS
from bidir_core.analyse.verdict import judge
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.explain.controls import above, standing
from bidir_core.explain.sweep_summary import Outcomes, outcomes
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts import blocks, findings_lab
from scripts import findings_text as text

CAUSAL, PLAIN, SINK = "causal", "bidirectional", "sink=1"
LIMIT = {
    CAUSAL: "stage1_vanilla_eval/20261122-230405_limit500",
    PLAIN: "stage2_prefill_bidir_eval/20261122-230425_limit500",
    SINK: "stage2_prefill_bidir_eval/20261122-230444_limit500-sink1",
}
FULL = {
    CAUSAL: "stage1_vanilla_eval/20261123-180236_bf16-causal",
    PLAIN: "stage2_prefill_bidir_eval/20261123-180236_bf16-bidirectional",
    SINK: "stage2_prefill_bidir_eval/20261123-180235_bf16-sink1",
}
NO_CONTEXT = "stage1_vanilla_eval/20261123-180517_bf16-no-context"


def run(name: str) -> Run:
    return Run(COMMITTED_RUNS / name)


# --- the blocks ----------------------------------------------------------------------------------


def claims() -> str:
    """Whole sets of each model: what bidirectional prefill does, and how much of it sink=1 removes."""
    found = _outcomes(FULL, "acc")
    delta, removed = found.delta(CAUSAL, PLAIN), found.removed(CAUSAL, PLAIN, SINK)
    assert delta is not None
    assert removed is not None
    told = [(findings_lab.EMBEDDED, delta, removed)]
    if (other := findings_lab.evidence(findings_lab.SECOND).whole) is not None:
        points = {point["regime"]: point["acc"] for point in (other.metrics or {})["points"]}
        told.append(
            (
                findings_lab.SECOND,
                text.estimate(points["bidirectional"]["delta"]),
                Retention(**points["bidirectional:sink=1"]["removed"]),
            )
        )
    rows = [
        [
            f"`{model}`", formatting.count(delta.n), text.delta(delta), JSON_WORDS[judge(delta).verdict],
            text.share(removed), standing(vars(removed)),
        ]
        for model, delta, removed in told
    ]  # fmt: skip
    header = [
        "model", "n", "bidirectional, minus causal", "verdict", "`sink=1` removes of that", "which is",
    ]  # fmt: skip
    return blocks.table(header, rows)


def damage() -> str:
    """Causal, bidirectional and sink=1 on three sets of items, in both measures."""
    rows = []
    for metric in METRICS:
        full = _outcomes(FULL, metric)
        for title, found in (
            (f"first {text.FIRST} of each task", _outcomes(LIMIT, metric)),
            ("whole sets", full),
            (f"without each task's first {text.FIRST}", text.only(full, _doc_ids() >= text.FIRST)),
        ):
            rows.append(
                [
                    f"`{metric}`, {title}",
                    formatting.count(int(found.mask(CAUSAL, PLAIN, SINK).sum())),
                    *(f"{100 * found.accuracy(name):.1f}" for name in (CAUSAL, PLAIN, SINK)),
                    text.delta(found.delta(CAUSAL, PLAIN)),
                    text.delta(found.delta(CAUSAL, SINK)),
                    text.share(found.removed(CAUSAL, PLAIN, SINK)),
                ]
            )
    header = [
        "measure, items", "n", "causal", "bidirectional", "sink=1", "bidirectional to causal",
        "sink=1 to causal", "damage removed by sink=1",
    ]  # fmt: skip
    return blocks.table(header, rows)


def tasks() -> str:
    """The same by task, whole sets; and what sink=1 leaves on the items past the first 500."""
    plain, sink = (compare(run(FULL[CAUSAL]), run(FULL[name])) for name in (PLAIN, SINK))
    later = text.only(_outcomes(FULL, "acc"), _doc_ids() >= text.FIRST)
    rows = []
    for one, other in zip(plain.tasks, sink.tasks, strict=True):
        mine = later.task == one.task
        left = [later.right[name][mine] for name in (CAUSAL, SINK)]
        rest = "no items"
        if mine.any():
            rest = (
                f"{text.delta(stats.paired_delta(*left))}, n = {formatting.count(int(mine.sum()))}"
            )
        rows.append(
            [
                f"`{one.task}`", formatting.count(one.n), text.delta(one.estimate), formatting.p_text(one.p_holm),
                text.delta(other.estimate), formatting.p_text(other.p_holm), rest,
            ]
        )  # fmt: skip
    header = [
        "task", "n", "bidirectional to causal", "p", "sink=1 to causal", "p",
        f"sink=1 to causal, without the first {text.FIRST}",
    ]  # fmt: skip
    return blocks.table(header, rows)


def floor() -> str:
    """What contexts give at all, and how much of that is lost."""
    none, said = run(NO_CONTEXT), []
    for name in (CAUSAL, PLAIN, SINK):
        said.append(f"{name} {text.delta(above(none, run(FULL[name])))}")
    kept = []
    for name in (PLAIN, SINK):
        share = compare(run(FULL[CAUSAL]), run(FULL[name]), floor=none).above_no_context
        kept.append(f"{name} keeps {text.share(share)}")
    return (
        f"Points above the same model without any context (95 % CI): {', '.join(said)}. "
        f"Of what the context gives causally, {' and '.join(kept)}.\n"
    )


BLOCKS: blocks.Blocks = {
    **{one.__name__: one for one in (claims, damage, floor)},
    **findings_lab.blocks(),
}
TABLES: blocks.Blocks = {"tasks": tasks, **findings_lab.tables()}


# --- how they are written ------------------------------------------------------------------------


def _outcomes(names: Mapping[str, str], metric: str) -> Outcomes:
    runs = {key: run(name) for key, name in names.items()}
    return outcomes(runs[CAUSAL], runs, metric)


def _doc_ids() -> np.ndarray:
    return run(FULL[CAUSAL]).items_table(("doc_id",)).column("doc_id").to_numpy()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    blocks.add_check(parser)
    check = parser.parse_args(arguments).check
    try:
        return blocks.write_or_check("findings", BLOCKS, TABLES, check=check, source="the runs")
    except UserError as error:  # a run that it needs is not there
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
