"""What the committed runs say, written into docs/RESULTS.md, docs/FINDINGS.md and docs/tables/.

    python -m scripts.findings            # writes it
    python -m scripts.findings --check    # says whether it stands there; exit 1 if not

The pages' words are written by hand; what stands between ``<!-- findings: NAME -->`` (or ``law``, ``order``, ``repair``) and
``<!-- end -->`` is written by this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import numpy as np

from bidir_core.analyse import stats
from bidir_core.analyse.compare import compare
from bidir_core.analyse.pairing import METRICS
from bidir_core.common import formatting
from bidir_core.explain.controls import above
from bidir_core.explain.sweep_outcomes import Outcomes, outcomes
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from scripts import findings_lab, findings_law, findings_order, findings_repair, pages
from scripts.findings_figures import FIGURES
from scripts.findings_lab import FIRST, only, share
from scripts.pages import Blocks, delta, table

CAUSAL, PLAIN, SINK = "causal", "bidirectional", "sink=1"
LIMITED = {
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


def _outcomes(names: Mapping[str, str], metric: str) -> Outcomes:
    runs = {key: run(name) for key, name in names.items()}
    return outcomes(runs[CAUSAL], runs, metric)


def _later() -> np.ndarray:
    """Which items of the whole sets come after the first 500 of their task."""
    doc_ids = run(FULL[CAUSAL]).items_table(("doc_id",)).column("doc_id")
    return doc_ids.to_numpy() >= FIRST


def damage() -> str:
    """Causal, bidirectional and sink=1 on three sets of items, in both measures."""
    rows = []
    for metric in METRICS:
        full = _outcomes(FULL, metric)
        for title, numbers in (
            (f"first {FIRST} of each task", _outcomes(LIMITED, metric)),
            ("whole sets", full),
            (f"without each task's first {FIRST}", only(full, _later())),
        ):
            rows.append(
                [
                    f"`{metric}`, {title}",
                    formatting.count(int(numbers.mask(CAUSAL, PLAIN, SINK).sum())),
                    *(f"{100 * numbers.accuracy(name):.1f}" for name in (CAUSAL, PLAIN, SINK)),
                    delta(numbers.delta(CAUSAL, PLAIN)),
                    delta(numbers.delta(CAUSAL, SINK)),
                    share(numbers.removed(CAUSAL, PLAIN, SINK)),
                ]
            )
    header = (
        "measure, items | n | causal | bidirectional | sink=1 | bidirectional to causal | "
        "sink=1 to causal | damage removed by sink=1"
    )
    return table(header, rows)


def tasks() -> str:
    """The same by task, whole sets; and what sink=1 leaves on the items past the first 500."""
    plain, sink = (compare(run(FULL[CAUSAL]), run(FULL[name])) for name in (PLAIN, SINK))
    later = only(_outcomes(FULL, "acc"), _later())
    rows = []
    for plain_task, sink_task in zip(plain.tasks, sink.tasks, strict=True):
        in_task = later.task == plain_task.task
        beyond = "no items"
        if in_task.any():
            effect = stats.paired_delta(later.right[CAUSAL][in_task], later.right[SINK][in_task])
            beyond = f"{delta(effect)}, n = {formatting.count(effect.n)}"
        rows.append(
            [
                f"`{plain_task.task}`",
                formatting.count(plain_task.n),
                delta(plain_task.estimate),
                formatting.p_text(plain_task.p_holm),
                delta(sink_task.estimate),
                formatting.p_text(sink_task.p_holm),
                beyond,
            ]
        )
    header = (
        "task | n | bidirectional to causal | p | sink=1 to causal | p | "
        f"sink=1 to causal, without the first {FIRST}"
    )
    return table(header, rows)


def floor() -> str:
    """What contexts give at all, and how much of that is lost."""
    none, causal = run(NO_CONTEXT), run(FULL[CAUSAL])
    points = [f"{name} {delta(above(none, run(path)))}" for name, path in FULL.items()]
    retained = []
    for name in (PLAIN, SINK):
        share_kept = compare(causal, run(FULL[name]), floor=none).above_no_context
        retained.append(f"{name} keeps {share(share_kept)}")
    return (
        f"Points above the same model without any context (95 % CI): {', '.join(points)}. "
        f"Of what the context gives causally, {' and '.join(retained)}.\n"
    )


BLOCKS: Blocks = {
    "findings: damage": damage,
    "findings: floor": floor,
    **{f"findings: {name}": block for name, block in findings_lab.BLOCKS.items()},
    **{f"law: {name}": block for name, block in findings_law.BLOCKS.items()},
    **{f"order: {name}": block for name, block in findings_order.BLOCKS.items()},
    **{f"repair: {name}": block for name, block in findings_repair.BLOCKS.items()},
}
TABLES: Blocks = {
    "tasks": tasks,
    **findings_lab.TABLES,
    **findings_law.TABLES,
    **findings_order.TABLES,
    **findings_repair.TABLES,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 unless all is as computed"
    )
    return pages.write(BLOCKS, TABLES, FIGURES, check=parser.parse_args(arguments).check)


if __name__ == "__main__":
    sys.exit(main())
