"""Write the published study's numbers as reference runs: numbers only, no items.

    python -m scripts.published_reference [RUNS_FOLDER]

The study (2026-02-15) evaluated ``mistralai/Ministral-3-3B-Instruct-2512`` on the first 500
validation items of each task (ARC-Challenge has 299). Its items were not published, so these runs
stand beside others in tables and can't be paired with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bidir_core.runs.layout import COMMITTED_RUNS, NONPREFILL, STAGE1, STAGE2, STAGE4
from bidir_core.runs.writer import RunWriter

MODEL = "mistralai/Ministral-3-3B-Instruct-2512"
SOURCE = "Stage 1-4 results summary of 2026-02-15 (accuracies as printed there)"
TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
N_ITEMS = (500, 500, 500, 299, 500)
CHANCE = (0.25, 0.5, 0.25, 0.25, 0.5)
FINETUNED = "stage3_finetune_prefill_bidir/20260214-233534/final"

# stage folder -> when, regime, checkpoint, macro accuracy
STAGES = {
    STAGE1: ("20260215-085905", "causal", None, 0.6950568562),
    STAGE2: ("20260215-000000", "bidirectional", None, 0.3558976000),
    STAGE4: ("20260215-093750", "bidirectional", FINETUNED, 0.4086983278),
    NONPREFILL: ("20260215-091629", "causal", FINETUNED, 0.6199344482),
}
# accuracy by task
ACCURACIES = {
    STAGE1: (0.622, 0.788, 0.814, 0.585284, 0.666),
    STAGE2: (0.242, 0.534, 0.238, 0.247492, 0.518),
    STAGE4: (0.324, 0.616, 0.352, 0.247492, 0.504),
}


def main(root: Path) -> None:
    for stage_dir, (stamp, regime, checkpoint, macro) in STAGES.items():
        settings = {
            "model": MODEL,
            "regime": regime,
            "checkpoint": checkpoint,
            "tasks": list(TASKS),
            "split": "validation",
            "limit": 500,
        }
        writer = RunWriter.create(
            stage_dir,
            settings,
            folder=root / stage_dir / f"{stamp}_published",
            kind="reference",
            source=SOURCE,
            created="2026-02-15T00:00:00+00:00",
            packages={},  # not ours to state
            git_commit=None,
        )
        rows = {
            task: {"n": n, "chance": chance, "acc": acc}
            for task, n, chance, acc in zip(TASKS, N_ITEMS, CHANCE, ACCURACIES.get(stage_dir, ()))
        }
        facts = {
            "tasks": rows,
            "macro": {"acc": macro, "chance": sum(CHANCE) / len(CHANCE)},
            "n_items": sum(N_ITEMS),
        }
        writer.finish(metrics=facts)
        print(writer.path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else COMMITTED_RUNS)
