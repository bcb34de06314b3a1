"""The chosen pair of runs, baseline and candidate: read from the URL, or a sensible default."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from bidir_core.analyse import selection
from bidir_core.analyse.pairing import Metric
from bidir_core.data import item_texts
from bidir_core.data.assets import EMBEDDED_MODEL, title_of
from bidir_core.runs.layout import is_read_only
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data
from bidir_ui.reading.data import RunInfo, by_id

EVAL = "python -m bidir_core eval"
PAIR_COMMANDS = (
    f"{EVAL} --model {EMBEDDED_MODEL} --limit 500",
    f"{EVAL} --model {EMBEDDED_MODEL} --limit 500 --prefill-bidirectional",
)


MOST_OFFERED = 500  # runs in a menu; the Runs page has all


@dataclass(frozen=True)
class Pair:
    """Baseline ``a`` and candidate ``b``; ``unknown`` holds ids from the URL that do not exist."""

    a: RunInfo | None
    b: RunInfo | None
    metric: Metric = "acc"
    unknown: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.a is not None and self.b is not None and not self.unknown


def choose(runs: tuple[RunInfo, ...], default: tuple[RunInfo, RunInfo] | None = None) -> Pair:
    """The pair the URL names, else ``default`` or the usual one. A name that does not exist is
    reported, never replaced."""
    usual: tuple[RunInfo | None, RunInfo | None] = (None, None)
    if not (url.get("a") and url.get("b")):
        usual = default or selection.default_pair(runs)
    chosen: list[RunInfo | None] = []
    unknown = []
    for name, otherwise in zip(("a", "b"), usual, strict=True):
        wanted = url.get(name)
        run = by_id(runs, wanted) if wanted else otherwise
        if wanted and run is None:
            unknown.append(wanted)
        chosen.append(run)
    metric: Metric = "acc_norm" if url.get("metric") == "acc_norm" else "acc"
    return Pair(chosen[0], chosen[1], metric, tuple(unknown))


def selectors(runs: tuple[RunInfo, ...], chosen: Pair) -> None:
    """Two menus in the sidebar and the measure; what they say is in the URL."""
    # The newest; and of sweeps only those points whose sweep the pair comes from.
    near = {run.id.rpartition("/")[0] for run in (chosen.a, chosen.b) if run and run.is_point}
    usable = [
        run.id
        for run in runs
        if run.can_pair and (not run.is_point or run.id.rpartition("/")[0] in near)
    ]
    if not usable:
        return
    if len(usable) > MOST_OFFERED:
        widgets.note(f"The newest {MOST_OFFERED} runs are offered here; Runs has all.")
        del usable[MOST_OFFERED:]
    named = {*usable, *(run.id for run in (chosen.a, chosen.b) if run)}
    names = data.menu(run for run in runs if run.id in named)
    for name, title, run in (("a", "Baseline", chosen.a), ("b", "Candidate", chosen.b)):
        options = usable if run is None or run.id in usable else [run.id, *usable]
        _menu(name, title, run, options, names)
        if run is not None:  # a closed menu shows one line of about 28 characters
            html.show(html.div("b b-note b-full", fmt.clip(data.full(run), 160)))
    measure()


def measure() -> None:
    """The measure of accuracy, in the URL."""
    url.choice(
        st.segmented_control,
        "Measure",
        name="metric",
        options=["acc", "acc_norm"],
        default="acc",
        help="acc: the choice with the largest log-likelihood. acc_norm: the largest "
        "log-likelihood per character of the choice.",
    )


def _menu(
    name: str, title: str, run: RunInfo | None, options: list[str], names: dict[str, str]
) -> None:
    url.bound(
        st.selectbox,
        title,
        name=name,
        read=lambda _text: run.id if run else None,  # choosing has looked at the URL already
        write=lambda value: value or "",
        options=options,
        format_func=lambda run_id: fmt.clip(item_texts.visible(names.get(run_id, run_id)), 90),
        placeholder="choose a run",
    )


def line(chosen: Pair) -> None:
    """One quiet line above a page's content: who is compared with whom."""
    parts = []
    for run, colour, word in ((chosen.a, "grey", "baseline"), (chosen.b, "blue", "candidate")):
        if run is None:
            continue
        tail = f" · {run.partial_note}" if run.partial_note else ""
        trained = f" · {run.weights}" if run.checkpoint else ""
        tail += f" · {run.source}" if run.is_imported else ""
        parts.append(
            html.el(
                "span",
                widgets.dot(colour),
                html.el("b", f"{run.stage_label} {run.regime}"),
                f" {word} · {run.model.split('/')[-1]}{trained} · {run.extent}{tail}",
            )
        )
    html.show(html.div("b b-pair", *parts))


def say_passed_over(pair: tuple[RunInfo, RunInfo] | None) -> None:
    """Why the Item page does not begin with the Overview's pair, and the way to that."""
    if pair is not None:
        a, b = pair
        text = (
            f"The Overview's runs of {title_of(a.model)} kept no texts, so this is another pair. "
        )
        other = widgets.link("Show the Overview's", "item", {"a": a.id, "b": b.id})
        widgets.note(text, other, ".")


def explain_if_missing(runs: tuple[RunInfo, ...], chosen: Pair) -> bool:
    """True if there is a pair; otherwise draw why not, and what to do."""
    if chosen.unknown:
        widgets.banner(
            "error",
            "Run not found",
            html.join("No run folder here is called ", _names(chosen.unknown), "."),
            "The link may come from another machine, or the run was renamed or deleted. "
            "Choose runs in the sidebar.",
        )
        return False
    if chosen.complete:
        return True
    if not runs:
        widgets.banner(
            "empty",
            "No runs yet",
            "A run is one evaluation of a model under one regime. Make the first two:",
        )
    else:
        widgets.banner(
            "empty",
            "Two runs are needed",
            "This page compares a baseline with a candidate; there are not two runs with items yet.",
        )
    widgets.command(*PAIR_COMMANDS)
    if not is_read_only():
        widgets.page_link("launch", "Start them here", {}, "play_circle")
    return False


def _names(ids: tuple[str, ...]) -> html.Html:
    names = [html.el("code", fmt.clip(run_id, 120)) for run_id in ids]
    return html.Html(" and ").join(names)
