"""Cached readers of ``attend`` runs: what the observed part of the Masks page draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from bidir_core import regimes
from bidir_core.common.errors import UserError
from bidir_core.explain import attend_files as files
from bidir_core.explain.configs import MOST_REGIMES
from bidir_ui.kit import fmt
from bidir_ui.reading import data
from bidir_ui.reading.data import BY_CHANGE, RunInfo


@dataclass(frozen=True)
class Observed:
    """A finished ``attend`` run. ``layers[i]`` are its averages under regime ``i``, as stored:
    part (prefix, start, continuation), measure, then a number a layer (or mean, low, high)."""

    info: RunInfo
    settings: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.metrics["regimes"])

    @cached_property
    def regimes(self) -> tuple[regimes.Regime, ...]:
        return tuple(regimes.parse_regime(name) for name in self.names)

    @property
    def n_layers(self) -> int:
        return int(self.metrics["n_layers"])

    @property
    def n_heads(self) -> int:
        return int(self.metrics["n_heads"])

    @property
    def is_summary(self) -> bool:
        return self.metrics["mode"] == "items"

    @property
    def has_matrices(self) -> bool:
        return bool(self.metrics.get("matrices"))

    @property
    def item(self) -> str:
        """The item's id; empty for a prompt of one's own and for averages."""
        return str(self.metrics.get("item") or "")

    @property
    def layers(self) -> list[dict[str, dict[str, Any]]]:
        return [observed["layers"] for observed in self.metrics["observed"]]

    def window(self, layer: int) -> int | None:
        windows = self.metrics.get("windows") or []
        return windows[layer] if layer < len(windows) else None

    @property
    def subject(self) -> str:
        if self.is_summary:
            n = fmt.count(self.metrics["n_items"])
            tasks = list(self.metrics["n_by_task"])
            several = f"{len(tasks)} tasks" if len(tasks) > 1 else fmt.task(tasks[0])
            return f"{n} items of {several}"
        if self.item:
            task, _, number = self.item.rpartition("/")
            return f"{fmt.task(task)} {number}"
        return f"“{fmt.clip(str(self.settings.get('prompt') or ''), 40)}”"

    @property
    def label(self) -> str:
        model = self.info.model.rstrip("/").rsplit("/", 1)[-1]
        return f"{self.subject} · {self.regime_words} · {model} · {self.info.created}"

    @property
    def regime_words(self) -> str:
        """The regimes as a list in words."""
        *others, last = self.names
        return f"{', '.join(others)} and {last}" if others else last


@st.cache_resource(max_entries=256, show_spinner=False, hash_funcs=BY_CHANGE)  # not copied
def _checked(info: RunInfo) -> tuple[dict[str, Any], dict[str, Any]]:
    run = data.run_of(info)
    metrics = run.metrics or {}
    try:
        most = {"sequence": 2, "items": MOST_REGIMES}[metrics["mode"]]
        known = 1 <= len(metrics["regimes"]) == len(metrics["observed"]) <= most
        for observed in metrics["observed"]:
            known = known and len(np.shape(observed["layers"]["prefix"]["first"])) < 2
        known = known and min(int(metrics["n_layers"]), int(metrics["n_heads"])) > 0
        for regime in metrics["regimes"]:
            regimes.parse_regime(regime)
        known = known and (metrics["mode"] == "sequence" or len(metrics["n_by_task"]) > 0)
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise UserError(f"the run '{run.id}' does not hold what the attend command writes")
    return run.settings, metrics


def load(info: RunInfo) -> Observed:
    """A finished attend run; UserError for one that cannot be read."""
    return Observed(info, *_checked(info))


# A cached function of an observation is asked again when its folder has changed.
BY_RUN: dict[Any, Any] = {Observed: lambda run: f"{run.info.path} {run.info.modified}"}


def listed(runs: tuple[RunInfo, ...]) -> list[Observed]:
    """Every readable finished attend run, newest first."""
    readable = []
    for info in runs:
        if info.kind == "attend" and info.is_done:
            try:
                readable.append(load(info))
            except UserError:
                continue
    return readable


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_RUN)
def by_head(observed: Observed) -> list[dict[str, np.ndarray]]:
    """Per regime: each measure's mean over the prefix, ``[layer, head]``."""
    path, n = Path(observed.info.path), len(observed.names)
    if observed.is_summary:
        shares = files.read_summary(path, n)
    else:
        shares = [share.mean() for share in files.read_shares(path, n)]
    shape = (observed.n_layers, observed.n_heads)
    if any(value.shape != shape for share in shares for value in share.values()):
        raise UserError(f"the shares of '{observed.info.id}' do not fit its metrics.json")
    return shares


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_RUN)
def received(observed: Observed) -> list[np.ndarray]:
    """Per regime: what each token gets, mean over heads, ``[layer, token]``."""
    shares = files.read_shares(Path(observed.info.path), len(observed.names))
    return [share.received.mean(1) for share in shares]


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs=BY_RUN)
def head(observed: Observed, regime: int, layer: int, number: int, total: int) -> np.ndarray:
    """One head's weights ``[query, key]``."""
    weights = files.read_head(Path(observed.info.path), regime, layer, number)
    if weights.shape != (total, total):
        raise UserError(
            f"layer {layer} of '{observed.info.id}' holds {weights.shape} weights for {total} tokens: "
            "its files are not of one run"
        )
    return weights


def requested(observed: Observed, regime: int, layer: int, n_prefix: int, total: int) -> np.ndarray:
    """What the regime allows in this layer, its sliding window included: bool [query, key]."""
    return regimes.visibility(
        observed.regimes[regime], n_prefix, total, layer=layer, window=observed.window(layer)
    )


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_RUN)
def drift(observed: Observed) -> files.Drift:
    return files.read_drift(Path(observed.info.path))


def tokens(observed: Observed) -> tuple[tuple[str, ...], int]:
    """Text pieces and prefix length."""
    return files.read_tokens(Path(observed.info.path))


def find(runs: tuple[RunInfo, ...], run_id: str) -> Observed | None:
    """The attend run of this id, None if there is none. UserError if it cannot be shown."""
    info = data.by_id(runs, run_id)
    if info is None or info.kind != "attend":
        return None
    if not info.is_done:
        state = info.error or "it left no results"
        raise UserError(f"the run '{info.id}' is {info.state}: {state}")
    return load(info)
