"""Runs of a whole study, for the tests of reports: base, fine-tunes and their control."""

import re

from bidir_core.report.report import build_report
from bidir_core.runs.curve import append_curve
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import FINETUNE_DIRS
from bidir_core.runs.run import Run
from bidir_core.runs.writer import RunWriter
from tests.factory import make_run

FOLDERS = {  # by whether it was trained, and whether the regime is not causal
    (False, False): "stage1_vanilla_eval",
    (False, True): "stage2_prefill_bidir_eval",
    (True, False): "nonprefill_compare",
    (True, True): "stage4_postft_eval",
}


def make_finetune(root, code="3B", *, seed=0, evals=True, **settings) -> Run:
    regime = "causal" if code == "3C" else "bidirectional"
    full = {"model": "smollm2-135m-instruct", "objective": code, "regime": regime, "seed": seed}
    full |= {"method": "full", "steps": 400, "lr": 1e-4, "batch_samples": 64, "data": "far"}
    full |= {"causal_anchor": 0.0, **settings}
    facts = {"data_fingerprint": "d", "training_data": {"n_used": 900, "n_dropped_contaminated": 7}}
    name = f"{code}-{seed}" + ("-lora" if full["method"] == "lora" else "")
    writer = RunWriter.create(
        FINETUNE_DIRS[code], full, root=root, name=name, kind="finetune", **facts
    )
    for step in (0, 200, 400) if evals else ():
        row = {"acc": 0.4 + step / 4000, "acc_norm": 0.4, "n": 250}
        evals = {"bidirectional": row, "causal": row}
        spent = {"step": step, "tokens": step * 100, "seconds": step / 10}
        append_curve(writer.path, spent | {"evals": evals})
    writer.finish(
        metrics={"steps": 400, "tokens": 40_000, "final_loss": 1.25, "weight_bytes": 9_000_000},
        cost={"seconds": 40.0, "computed_tokens": 41_000, "device": "cpu"},
    )
    return Run(writer.path)


def evaluation(root, regime="causal", accuracy=0.5, *, trained: Run | None = None, **more) -> Run:
    """One of the 2x2's cells; equal ``accuracy`` and ``seed`` make equal predictions."""
    folder = FOLDERS[trained is not None, regime != "causal"]
    facts = {}
    if trained is not None:
        facts["training_record"] = {"run": trained.id, "objective": trained.settings["objective"]}
    more = {"n_items": 1000, "seed": 3, "texts": False, "facts": facts} | more
    checkpoint = str(trained.path / "final") if trained else None
    return make_run(root, folder, regime=regime, accuracy=accuracy, checkpoint=checkpoint, **more)


def two_by_two(root, cells: dict[tuple[str, str], float], *, seeds=(0,), **recipe) -> None:
    for arm in dict.fromkeys(arm for arm, _ in cells):
        for seed in seeds if arm != "base" else (0,):
            trained = None if arm == "base" else make_finetune(root, arm, seed=seed, **recipe)
            for regime in ("causal", "bidirectional"):
                if (arm, regime) in cells:
                    evaluation(root, regime, cells[arm, regime], trained=trained, seed=3 + seed)


REPAIRED = {("base", "causal"): 0.55, ("base", "bidirectional"): 0.40}
REPAIRED |= {("3B", "causal"): 0.60, ("3B", "bidirectional"): 0.60}
REPAIRED |= {("3C", "causal"): 0.60, ("3C", "bidirectional"): 0.45}


def report(root, **more):
    return build_report(list_runs([root]), roots=[root], **more)


def section(text: str, heading: str) -> str:
    match = re.search(rf"^##+ {re.escape(heading)}.*?(?=^##|\Z)", text, re.S | re.M)
    assert match, heading
    return match[0]
