"""Runs as a tree to open and close: study (a model), arm (what was evaluated or trained), seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bidir_core.data import item_texts
from bidir_core.runs.layout import LAB, STAGES
from bidir_ui.kit import fmt, url
from bidir_ui.reading.data import RunInfo

MANY = 24  # runs from which the list begins as a tree
CLOSED = "none"  # in the URL: nothing is open, not even the chosen run's study


@dataclass(frozen=True)
class Node:
    """A line of the tree. A line for several runs can be opened; ``key`` names it in the URL."""

    label: str
    level: int
    runs: tuple[RunInfo, ...]
    key: str = ""
    is_open: bool = False

    @property
    def run(self) -> RunInfo | None:
        """The run that the line is; None for a group."""
        return None if self.key else self.runs[0]

    @property
    def text(self) -> str:
        mark = ("▾ " if self.is_open else "▸ ") if self.key else "  "
        return "\u2003" * self.level + mark + item_texts.visible(fmt.clip(self.label, 110))


def tree(runs: Iterable[RunInfo], chosen: RunInfo | None) -> list[Node]:
    """The lines to show. Until somebody opened or closed one, the chosen run's study is open."""
    studies: dict[str, list[RunInfo]] = {}
    for run in runs:
        studies.setdefault(run.model or "no model", []).append(run)
    initially = {_key(chosen.model)} if chosen else set()
    opened = set(url.get_list("open")) or initially
    nodes = []
    for model, members in studies.items():
        key = _key(model)
        name = model.rstrip("/").rsplit("/", 1)[-1]
        nodes.append(Node(f"{name} · {len(members)} runs", 0, tuple(members), key, key in opened))
        if key in opened:
            nodes += _arms(model, members, opened)
    return nodes


def _arms(model: str, runs: Sequence[RunInfo], opened: set[str]) -> list[Node]:
    arms: dict[tuple[str, ...], list[RunInfo]] = {}
    for run in runs:
        arm: tuple[str, ...] = (run.stage_label, run.arm_label, run.regime, run.extent, run.dtype)
        if run.stage == LAB:
            arm = (run.label,)
        elif run.is_finetune:
            arm = (run.stage_label, run.method, run.steps, run.regime)
        arms.setdefault(arm, []).append(run)
    nodes = []
    order = [*STAGES, LAB]

    def place(arm: tuple[str, ...]) -> tuple[object, ...]:
        stage = arms[arm][0].stage
        return order.index(stage) if stage in order else len(order), arm

    for arm in sorted(arms, key=place):
        arm_runs = sorted(arms[arm], key=lambda run: (run.train_seed, run.name))
        label = " · ".join(part for part in arm if part and part != "auto")
        if len(arm_runs) == 1:
            nodes.append(Node(label, 1, tuple(arm_runs)))
            continue
        seeds = len({run.train_seed for run in arm_runs})
        several = f"{seeds} seeds" if seeds == len(arm_runs) else f"{len(arm_runs)} runs"
        key = _key(model, *arm)
        nodes.append(Node(f"{label} · {several}", 1, tuple(arm_runs), key, key in opened))
        if key in opened:
            nodes += [
                Node(f"seed {run.train_seed} · {run.name or run.created}", 2, (run,))
                for run in arm_runs
            ]
    return nodes


def _key(*parts: str) -> str:
    return hashlib.sha1("\n".join(parts).encode()).hexdigest()[:8]


def toggle(node: Node, nodes: Iterable[Node]) -> None:
    """Open or close a line, in the URL."""
    opened = {each.key for each in nodes if each.is_open} ^ {node.key}
    url.put(open=sorted(opened) or [CLOSED])
