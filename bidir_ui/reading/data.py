"""Cached readers of run folders. Every cache is bounded and keyed on run id and change time."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from bidir_core.analyse import selection
from bidir_core.analyse.pairing import repeats
from bidir_core.analyse.study import BASE, NAMES, UNKNOWN, Arm, arm_of, items_key
from bidir_core.common.errors import UserError
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.data.builtin_tasks import ORDER_TASKS
from bidir_core.data.items import ONE_SIDED, one_sided_sentences
from bidir_core.explain.sweep_points import patch_words
from bidir_core.runs.find import run_folders
from bidir_core.runs.layout import IMPORTED, LEAKY_WARNING
from bidir_core.runs.run import Run, stamp_of
from bidir_ui.kit import fmt

LOOKED_AT = {  # no scores: not paired
    "why": "an item explained",
    "attend": "attention observed",
    "recommend": "a regime recommended",
}


@dataclass(frozen=True)
class RunInfo:
    """What lists need to know about a run, read once."""

    id: str
    path: str
    modified: float
    stage: str
    name: str
    state: str
    error: str
    model: str
    checkpoint: str
    regime: str
    kind: str
    limit: int | None
    context: str
    compact: bool
    has_items: bool
    n_items: int
    n_done: int | None
    n_total: int | None
    created: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    macro: dict[str, float | None] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    dtype: str = ""
    item_set: tuple[tuple[str, str], ...] = ()
    arm: Arm | None = None
    train_seed: int = 0
    one_sided: tuple[str, ...] = ()  # tasks in which one position is nearly always right
    variant: str = ""  # what a sweep's point has beside its regime: a patch, another prompt

    @property
    def is_point(self) -> bool:
        """A point of a lab sweep: reached from the Lab page, too many for lists."""
        return "/points/" in self.id

    @property
    def is_sweep(self) -> bool:
        return self.kind == "lab"

    def same_items(self, other: RunInfo) -> bool:
        """The same items of the same model in the same number format: fit to be a partner."""
        return selection.same_items(self, other)

    @property
    def is_evaluation(self) -> bool:
        """Scored here on items: not imported, published, trained, swept or looked at."""
        return self.kind == "eval" and not self.is_reference

    @property
    def is_finetune(self) -> bool:
        return self.kind == "finetune"

    @property
    def method(self) -> str:
        """How the weights were trained: full or lora; empty for the base and if unrecorded."""
        return dict(self.arm.recipe).get("method", "") if self.arm else ""

    @property
    def weights(self) -> str:
        """What is evaluated or trained: ``base``, ``3B full``, ``3C LoRA seed 1``."""
        return self.arm_label + (f" seed {self.train_seed}" if self.train_seed else "")

    @property
    def arm_label(self) -> str:
        """:attr:`weights`, whatever the training seed."""
        if self.arm is None or self.arm.code == BASE:
            return "" if self.is_reference else "base"
        method = {"lora": "LoRA"}.get(self.method, self.method)
        return " ".join(filter(None, (NAMES.get(self.arm.code, self.arm.code), method)))

    @property
    def is_leaky(self) -> bool:
        return self.arm is not None and self.arm.leaky

    @property
    def trained_under(self) -> str:
        """The regime its checkpoint was trained under, where it is evaluated under another."""
        if self.is_finetune or self.arm is None or not self.arm.regime:
            return ""
        return self.arm.regime if self.arm.regime != self.regime else ""

    @property
    def cautions(self) -> tuple[tuple[str, str], ...]:
        """(title, sentence) of what to know before reading a number of it."""
        cautions = []
        if self.is_leaky:
            cautions.append(("Leaky training", LEAKY_WARNING))
        if self.trained_under:
            cautions.append(
                (
                    "Another mask than in training",
                    f"{self.label}: its weights were trained under {self.trained_under} and are "
                    f"evaluated under {self.regime}.",
                )
            )
        elif self.arm is not None and self.arm.code == UNKNOWN:
            cautions.append(
                (
                    "Unknown training",
                    f"{self.label}: nobody recorded under which mask this checkpoint was trained.",
                )
            )
        cautions += [(ONE_SIDED, sentence) for sentence in self.one_sided]
        return tuple(cautions)

    @property
    def steps(self) -> str:
        """Training steps of a fine-tune, in words."""
        number = dict(self.arm.recipe).get("steps", "") if self.arm else ""
        return f"{number} steps" if number else ""

    @property
    def stage_label(self) -> str:
        return fmt.stage(self.stage)

    @property
    def is_reference(self) -> bool:
        return self.state == "reference"

    @property
    def is_imported(self) -> bool:
        """Its scores were computed by another program."""
        return self.kind == IMPORTED

    @property
    def is_done(self) -> bool:
        return self.state == "done"

    @property
    def can_pair(self) -> bool:
        """It holds scored items, complete or not."""
        return self.has_items and self.state != "corrupt"

    @property
    def extent(self) -> str:
        """How much of the split was run, in a word or two."""
        parts = [f"limit {self.limit}" if self.limit else "all items"]
        if self.context != "full":
            parts.append("no context" if self.context == "none" else f"{self.context} context")
        if self.tasks and self.tasks.keys() <= ORDER_TASKS.keys():
            parts.append("order tasks")
        return ", ".join(filter(None, (*parts, self.variant)))

    @property
    def label(self) -> str:
        """Short name for menus and legends: stage, what was trained, regime, extent."""
        if self.is_reference:
            return f"Published · {self.stage_label} · {self.regime}"
        if self.is_sweep:
            return f"{self.stage_label} · sweep · {self.extent}"
        if self.kind in LOOKED_AT:
            return f"{self.stage_label} · {LOOKED_AT[self.kind]} · {self.regime}"
        if self.is_finetune:
            return " · ".join(part for part in (self.stage_label, self.method, self.steps) if part)
        if self.checkpoint:
            return f"{self.stage_label}, {self.weights} · {self.regime} · {self.extent}"
        imported = "Imported · " if self.is_imported else ""
        return f"{imported}{self.stage_label} · {self.regime} · {self.extent}"

    @property
    def partial_note(self) -> str:
        """Empty for a complete run; otherwise what its numbers are based on."""
        if self.is_done or self.is_reference:
            return ""
        of = f" of {fmt.count(self.n_total)}" if self.n_total else ""
        unit = "steps" if self.is_finetune else "items"
        return f"{self.state}: {fmt.count(self.n_done)}{of} {unit} so far"


def run_of(info: RunInfo) -> Run:
    """Its folder; as the list has just read it, if it has."""
    return _fresh.get(info.path) or Run(info.path)


_index: dict[str, tuple[tuple[int, ...], RunInfo]] = {}  # by folder: its stamp when it was read
_fresh: dict[str, Run] = {}  # by folder: those that the last listing read
_turn = itertools.count()
_lock = threading.Lock()
MOST_CHECKED = 1000


def list_infos() -> tuple[RunInfo, ...]:
    """Every run, newest first; only those are read whose folder or files changed since.

    A run that was being written is read each time: its process may have died. A file that is replaced
    changes its folder; of edits in place every listing looks for at most MOST_CHECKED, in turn.
    """
    global _index, _fresh
    with _lock:
        known, now, fresh, turn = _index, {}, {}, next(_turn)
        paths = run_folders(points=True, known=known)
        n_turns = -(-len(paths) // MOST_CHECKED)
        for number, path in enumerate(paths):
            entry = known.get(path)
            if entry is None or (number - turn) % n_turns == 0 or _is_touched(path, *entry):
                stamp = stamp_of(path)
                if entry is None or entry[0] != stamp or entry[1].state == "running":
                    fresh[path] = Run(path)
                    entry = stamp, _read(fresh[path], max(stamp[::2]) / 1e9)
            now[path] = entry
        _index, _fresh = now, fresh  # folders that are gone drop out
    return tuple(info for _, info in now.values())


def _is_touched(path: str, stamp: tuple[int, ...], info: RunInfo) -> bool:
    try:
        return info.state != "done" or os.stat(path).st_mtime_ns != stamp[0]
    except OSError:  # it has just been deleted
        return True


@st.cache_data(max_entries=200, show_spinner=False)
def _count(path: str, modified: float) -> int | None:
    """Items recorded by a run that left no status."""
    try:
        return Run(path).items_table(("doc_id",)).num_rows
    except UserError:
        return None


def _read(run: Run, modified: float) -> RunInfo:
    path, created = str(run.path), run.created
    state, settings, status = run.state, run.settings, run.status
    metrics = (run.metrics or {}) if state != "corrupt" else {}
    limit = settings.get("limit")
    n_done = status.get("done")
    if n_done is None and not metrics and run.has_items and state != "corrupt":
        n_done = _count(path, modified)
    kind = str(run.config.get("kind") or "eval")
    known = state != "corrupt"
    arm, train_seed = arm_of(run) if known else (None, 0)
    return RunInfo(
        id=run.id,
        path=path,
        modified=modified,
        stage=run.stage,
        name=run.name or "",
        state=state,
        error=run.error or "",
        model=run.model,
        checkpoint=str(settings.get("checkpoint") or ""),
        regime=run.regime,
        kind=kind,
        limit=limit if isinstance(limit, int) else None,
        context=str(settings.get("context") or "full"),
        compact=run.is_compact,
        has_items=run.has_items,
        n_items=0 if kind == "finetune" else int(metrics.get("n_items") or n_done or 0),
        n_done=n_done,
        n_total=status.get("total"),
        created=f"{created:%Y-%m-%d %H:%M}" if created else fmt.NONE,
        tasks=metrics.get("tasks") or {},
        macro=metrics.get("macro") or {},
        cost=metrics.get("cost") or {},
        source=str(run.config.get("source") or ""),
        dtype=str(run.config.get("dtype") or settings.get("dtype") or ""),
        item_set=items_key(run) if known else (),
        arm=arm,
        train_seed=train_seed,
        one_sided=_one_sided(run) if known else (),
        variant=_variant(run),
    )


def _one_sided(run: Run) -> tuple[str, ...]:
    positions = run.config.get("answer_positions")
    try:
        return tuple(one_sided_sentences(positions)) if isinstance(positions, dict) else ()
    except (AttributeError, KeyError, TypeError, ValueError):  # written by hand
        return ()


def _variant(run: Run) -> str:
    """What sets its prompts apart; of a sweep's point also what else it varies."""
    settings = run.settings
    parts = ["of given items"] if settings.get("items_file") else []
    if (n := repeats(settings)) != 1:
        parts.append(f"prompt {n} times")
    if not run.is_point:
        return ", ".join(parts)
    if settings.get("patch"):
        parts.append(patch_words(settings["patch"]))
    if settings.get("bos") not in (None, "auto"):
        parts.append(f"BOS {settings['bos']}")
    if settings.get("chat_template"):
        parts.append("chat template")
    return ", ".join(parts)


def by_id(runs: tuple[RunInfo, ...], run_id: str) -> RunInfo | None:
    return next((run for run in runs if run.id == run_id), None)


# A cached function of a run is asked again when its folder has changed.
BY_CHANGE: dict[Any, Any] = {RunInfo: lambda run: f"{run.path} {run.modified}"}


@st.cache_data(max_entries=512, show_spinner=False, hash_funcs=BY_CHANGE)
def record(info: RunInfo, item_id: str) -> dict[str, Any] | None:
    """One whole record; None if the run has no such item. UserError for a malformed id."""
    return run_of(info).item(*task_and_row(item_id))


def task_and_row(item_id: str) -> tuple[str, int]:
    """An item's id in its parts. UserError for a malformed one."""
    task, _, number = item_id.rpartition("/")
    if not task or not number.isdecimal():
        raise UserError(f"'{item_id[:80]}' is not an item id; ids look like piqa/12")
    return task, int(number)


# Names of runs that tell them apart: where two labels collide, what differs is added.

# Tried in this order; the folder's name, with its seconds, always differs in the end.
_DIFFERENCES: tuple[Callable[[RunInfo], str], ...] = (
    lambda run: run.stage_label,
    lambda run: run.dtype,
    lambda run: run.steps,
    lambda run: run.name,
    lambda run: "" if run.created == fmt.NONE else run.created,
    lambda run: run.id,
)


def apart(runs: Iterable[RunInfo], label: Callable[[RunInfo], str]) -> dict[str, str]:
    """What to append to each run's label, by run id; empty where the label is its own."""
    out: dict[str, str] = {}
    groups: dict[str, list[RunInfo]] = {}
    for run in {run.id: run for run in runs}.values():
        out[run.id] = ""
        groups.setdefault(label(run), []).append(run)
    for group in groups.values():
        _tell_apart(group, out)
    return out


def _tell_apart(group: list[RunInfo], out: dict[str, str], start: int = 0) -> None:
    if len(group) < 2:
        return
    for number, difference in enumerate(_DIFFERENCES[start:], start):
        parts: dict[str, list[RunInfo]] = {}
        for run in group:
            parts.setdefault(difference(run), []).append(run)
        if len(parts) > 1:
            for text, same in parts.items():
                for run in same:
                    out[run.id] += f" · {text}" if text else ""
                _tell_apart(same, out, number + 1)
            return


def menu(runs: Iterable[RunInfo]) -> dict[str, str]:
    """Labels for a narrow menu, by run id: what distinguishes runs first, and short."""
    runs = tuple(runs)
    extra = apart(runs, _short)
    return {run.id: _short(run) + extra[run.id] for run in runs}


def full(run: RunInfo) -> str:
    """Everything a reader may want to know of the chosen run, for a line that wraps."""
    trained = run.weights if run.checkpoint else ""
    state = "" if run.is_done else run.state
    imported = "imported" if run.is_imported else ""
    parts = (
        run.stage_label,
        run.regime,
        trained,
        run.extent,
        run.dtype,
        "" if run.model == EMBEDDED_MODEL else run.model.rsplit("/", 1)[-1],
        run.name,
        imported,
        state,
    )
    return " · ".join(part for part in parts if part)


def _short(run: RunInfo) -> str:
    """``sink=1 · limit 500``: the dial without the word that all dialled runs share."""
    regime = run.regime.removeprefix("bidirectional:")
    model = "" if run.model == EMBEDDED_MODEL else run.model.rsplit("/", 1)[-1]
    parts = (
        run.weights if run.checkpoint else "",
        regime,
        run.extent,
        model,
        "imported" if run.is_imported else "",
        "" if run.is_done else run.state,
    )
    return " · ".join(part for part in parts if part)
