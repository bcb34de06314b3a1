"""Fabricated repair runs: who was right is given item by item, so that differences are known."""

from collections.abc import Collection, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from bidir_core.data.items import fold_of
from bidir_core.runs.layout import FINETUNE_DIRS, evaluation_dir
from bidir_core.runs.records import make_record
from bidir_core.runs.writer import RunWriter
from scripts.repair import COMMITTED_BASE

TASKS = ("piqa", "winogrande")
N_ITEMS = 1000
Wrong = Collection[str]  # doc_hash of items that a model gets wrong


@cache
def _items() -> dict[str, tuple[str, int]]:
    """By doc_hash: task and number."""
    return {
        sha256(f"{task}/{number}".encode()).hexdigest(): (task, number)
        for task in TASKS
        for number in range(N_ITEMS // len(TASKS))
    }


@cache
def hashes(half: str | None = None) -> tuple[str, ...]:
    """The items of a half, or all."""
    return tuple(one for one in _items() if half in (None, fold_of(one)))


@cache
def _records(right: bool) -> dict[str, Mapping[str, Any]]:
    text = {"contexts": ["Question"], "continuations": [" yes", " no"], "n_prefix_tokens": [1]}
    alike = {**text, "n_continuation_tokens": [1, 1], "gold": 0, "compact": True}
    alike["ll"] = [-1.0, -2.0] if right else [-2.0, -1.0]
    return {
        doc_hash: make_record(task=task, doc_id=number, doc_hash=doc_hash, **alike)
        for doc_hash, (task, number) in _items().items()
    }


def evaluated(root: Path, name: str, regime: str, wrong: Wrong = (), *, tuned: bool = True) -> None:
    """A run that is right everywhere but on the ``wrong`` items."""
    checkpoint = "final" if tuned else None
    stage = evaluation_dir(regime, checkpoint=checkpoint)
    settings = {"model": "m", "checkpoint": checkpoint, "regime": regime, "tasks": TASKS}
    writer = RunWriter.create(stage, settings, root=root, name=name)
    bad = set(wrong)
    writer.append([_records(one not in bad)[one] for one in hashes()])
    writer.finish(cost={"seconds": 1.0})


def base(root: Path, wrong: Wrong = ()) -> None:
    """The base model; causal it is wrong on these, bidirectional on half of all."""
    evaluated(root, COMMITTED_BASE["causal"], "causal", wrong, tuned=False)
    evaluated(root, COMMITTED_BASE["bidirectional"], "bidirectional", hashes()[::2], tuned=False)


def arm(
    root: Path,
    name: str,
    seed: int = 0,
    *,
    causal: Wrong = (),
    bidirectional: Wrong = (),
    weight_bytes: int = 9_000_000,
    **settings: Any,
) -> None:
    """A fine-tune and its two evaluations, wrong on these items."""
    full = {"objective": "3B", "method": "full", "seed": seed, "steps": 400, "lr": 1e-4, **settings}
    stage = FINETUNE_DIRS[full["objective"]]
    facts = {"name": f"{name}-seed{seed}", "kind": "finetune"}
    writer = RunWriter.create(stage, full, root=root, **facts)
    metrics = {"tokens": 1000 * full["steps"], "weight_bytes": weight_bytes}
    writer.finish(metrics=metrics, cost={"seconds": 0.1 * full["steps"], "device": "cpu"})
    for regime, wrong in (("causal", causal), ("bidirectional", bidirectional)):
        evaluated(root, f"{name}-seed{seed}-{regime}", regime, wrong)
