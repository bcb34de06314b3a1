"""Observed attention on the Masks page: choose a run, then averages, one head, and drift."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from bidir_core import jobs
from bidir_core.common.errors import UserError
from bidir_core.data import item_texts
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.explain.configs import AttendConfig, attend_words
from bidir_core.report import plots_attend
from bidir_core.report.plots_attend import Line
from bidir_core.runs.layout import is_read_only
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.launch import ask, jobs_view
from bidir_ui.masks import masks_view, observed_data, observed_head
from bidir_ui.masks.observed_data import Observed
from bidir_ui.reading import data

MEASURES = {
    "first": ("First token", "share of attention on the first token"),
    "future": ("Future tokens", "share of attention on later tokens"),
    "past": ("Past tokens", "share of attention on earlier tokens"),
    "entropy": ("Entropy", "entropy of a token's attention, nats"),
}

PARTS = {"head": "Token by token", "landing": "Where attention lands", "drift": "Drift"}


def chosen(page: Any) -> Observed | None:
    """The run named in the URL, with what is wrong drawn where it cannot be shown."""
    run_id = url.get("attend")
    if not run_id:
        return None
    try:
        observed = observed_data.find(page.runs, run_id)
    except UserError as error:
        widgets.banner("error", "This observation cannot be shown", str(error))
        return None
    if observed is None:
        widgets.banner("error", "Not found", f"No run here observed attention as “{run_id[:120]}”.")
    return observed


def section(page: Any, current: Observed | None, item_id: str) -> None:
    """The whole observed part, in whichever state it is."""
    everyone = observed_data.listed(page.runs)
    matching = [run for run in everyone if item_id and run.item == item_id]
    if current is None and not url.get("attend"):
        pool = matching if item_id else everyone
        current = next((run for run in pool if not run.is_summary), pool[0] if pool else None)
    others = [run for run in everyone if run not in matching]
    if matching or others:
        _choose([*matching, *others], current)
    if current is None:
        if item_id and not matching:
            widgets.banner(
                "empty",
                "Not observed yet",
                f"No run here observed {fmt.clip(item_id, 80)}. This line does, under both regimes:",
            )
        elif everyone:
            widgets.note("Choose one of the runs above, or make one:")
        else:
            widgets.banner(
                "empty",
                "Nothing observed here yet",
                "The mask says who may attend to whom; a run of the model says who does. "
                "This line makes one:",
            )
        offer(page, item_id)
        return
    if item_id and current.item != item_id:
        widgets.banner(
            "info",
            "Another text than the item in this link",
            f"Shown is {current.subject}; the link's item is {fmt.clip(item_id, 80)}.",
        )
    show(current)
    _observe_more(page, item_id)


@st.fragment
def _observe_more(page: Any, item_id: str) -> None:
    """Closed it costs nothing: a code block starts a highlighter, 0.4 s in the browser."""
    with st.expander("Observe something else", key="attend-more", on_change="rerun") as more:
        if more.open:
            offer(page, item_id)
            widgets.note(
                "The line takes the item or prompt and the two regimes that stand under Requested. "
                "Averages over many items: --task T --limit N instead of --doc-id."
            )


def _choose(options: list[Observed], current: Observed | None) -> None:
    ids = [run.info.id for run in options]
    labels = {run.info.id: item_texts.visible(run.label) for run in options}
    url.bound(
        st.selectbox,
        "Observed run",
        name="attend",
        options=ids,
        index=None if current is None else 0,
        format_func=lambda run_id: labels.get(run_id, run_id),
        read=lambda text: text if text in ids else (current.info.id if current else None),
        write=lambda run_id: run_id or "",
        placeholder="choose a run",
    )


def show(run: Observed) -> None:
    """The ready state: one text token by token, then its averages; of many items the averages."""
    if run.is_summary:
        _sentence(run)
    else:
        if not run.has_matrices:
            widgets.banner(
                "info",
                "No attention weights of single heads",
                *(
                    f"{note[:1].upper()}{note[1:]}."
                    for note in map(str, run.metrics.get("notes") or ())
                ),
                "What follows is of the whole text.",
            )
        pieces, n_prefix = observed_data.tokens(run)
        parts = {"head": observed_head.section, "landing": _landing, "drift": _drift}
        parts[_part(run)](run, pieces, n_prefix)
        _sentence(run)
    labels = {name: label for name, (label, _) in MEASURES.items()}
    measure = url.segments("Measure", name="measure", options=labels, default="first")
    left, right = st.columns([6, 5], gap="large")
    with left:
        _layers(run, measure)
    with right:
        _grid(run, measure)
    if run.is_summary:
        by_task(run, measure)
        drift(run)
    widgets.heading("What was observed")
    _facts(run)


def _part(run: Observed) -> str:
    """Which closer look: one at a time, since each chart costs the browser 0.1 to 0.3 s."""
    parts = PARTS if run.has_matrices else {k: v for k, v in PARTS.items() if k != "head"}
    return url.segments("What to look at", name="part", options=parts, default=next(iter(parts)))


def _sentence(run: Observed) -> None:
    """Who gets the attention: a line a regime."""
    lines = []
    for number, name in enumerate(run.names):
        first, future = (_overall(run, number, measure) for measure in ("first", "future"))
        ahead = f", {future} to later tokens" if run.regimes[number].bidirectional else ""
        lines.append(
            html.div("", html.el("b", name), fmt.tie(f": {first} to the first token{ahead}"))
        )
    n = f"{fmt.count(run.metrics['n_items'])} items" if run.is_summary else "one text, n = 1"
    widgets.heading("Where the prompt's attention goes")
    html.show(html.div("b b-lead", *lines))
    ends = ", 95 % intervals" if run.is_summary else ""
    widgets.note(f"Mean over layers and heads, {n}{ends}.")


def _overall(run: Observed, number: int, measure: str) -> str:
    """A share over all layers and heads, over many items with its interval."""
    if run.is_summary:
        return _cell(run.metrics["observed"][number]["overall"]["prefix"][measure], measure)
    return fmt.percent(float(np.mean(_values(run, measure)[number].values)))


def _facts(run: Observed) -> None:
    metrics = run.metrics
    rows: list[tuple[str, str]] = [
        ("model", run.info.model),
        ("observed", run.subject),
        ("regimes", run.regime_words),
        ("number format", f"{run.info.dtype}, eager attention"),
    ]
    if not run.is_summary:
        n, n_prefix = int(metrics["n_tokens"]), int(metrics["n_prefix_tokens"])
        rows.append(("tokens", f"{n_prefix} prefix + {n - n_prefix} continuation"))
        lls = [entry.get("continuation_ll") for entry in metrics["observed"]]
        if None not in lls:
            rows.append(("log-likelihood", " and ".join(f"{fmt.number(ll)} nats" for ll in lls)))
    widgets.facts(rows)


def _values(run: Observed, measure: str, part: str = "prefix") -> list[Line]:
    lines = []
    for name, layers in zip(run.names, run.layers, strict=True):
        known = (layers.get(part) or {}).get(measure)
        stored = known if isinstance(known, dict) else {"mean": known}
        mean = stored.get("mean")
        if not isinstance(mean, list) or len(mean) != run.n_layers:
            raise UserError(f"the averages of '{run.info.id}' do not cover its layers")
        lines.append(Line(name, mean, stored.get("low"), stored.get("high")))
    return lines


def _layers(run: Observed, measure: str) -> None:
    widgets.heading("By layer")
    lines, meaning = _values(run, measure), MEASURES[measure][1]
    entropy = measure == "entropy"
    title = "nats" if entropy else "share of attention, %"
    widgets.chart(
        plots_attend.by_layer(lines, title, percent=not entropy),
        f"{meaning} by layer, under {run.regime_words}; the table below has the numbers.",
        key=f"attend-layers-{measure}",
    )
    over = "mean over heads and over all prefix tokens but the first"
    if run.is_summary:
        n = fmt.count(run.metrics["n_items"])
        over += f", then over {n} items (n = items; bands: 95 % interval)."
    else:
        over += ". One text, so no interval."
    widgets.note(f"{meaning[:1].upper()}{meaning[1:]}: {over}")
    table = {"layer": range(run.n_layers)}
    columns = {
        f"{line.name}{end}": values
        for line in lines
        for end, values in (("", line.values), (" low", line.low), (" high", line.high))
        if values is not None
    }
    name = f"{measure}-by-layer_{run.info.id}.csv"
    widgets.numbers(pd.DataFrame(table | columns), name, key="attend")


def _grid(run: Observed, measure: str) -> None:
    widgets.heading("By head")
    panels = [each[measure] for each in observed_data.by_head(run)]
    selected = None if not run.has_matrices else observed_head.selected(run)
    options: dict[str, Any] = {"key": f"attend-grid-{run.info.id}-{measure}"}
    if run.has_matrices:
        options = observed_head.clickable(options["key"], "layer", "head")
    widgets.chart(
        plots_attend.head_grid(panels, run.names, selected=selected, percent=measure != "entropy"),
        f"{MEASURES[measure][1]} of each layer and head.",
        **options,
    )
    if run.has_matrices:
        widgets.note("Click a head to see its weights above.")


def _landing(run: Observed, pieces: tuple[str, ...], n_prefix: int) -> None:
    widgets.heading("Where attention lands")
    panels = [received[:, :n_prefix] for received in observed_data.received(run)]
    widgets.chart(
        plots_attend.layer_map(panels, run.names, pieces[:n_prefix], n_prefix, label="received"),
        "What each token receives from the prefix, by layer, mean over heads, log colours.",
        key="attend-landing",
    )
    widgets.note(
        "What each token gets on average from the prefix's tokens, mean over heads. A bright "
        "first column is the attention sink; another bright column would be a sink that moved."
    )


def _lengths(lines: list[Line], others: str) -> None:
    title = "length of the hidden state"
    widgets.chart(
        plots_attend.by_layer(lines, title, groups=2, log=True, percent=False),
        f"Length of the first token's hidden state by layer, and of {others}.",
        key="attend-norms",
    )


def _drift(run: Observed, pieces: tuple[str, ...], n_prefix: int) -> None:
    drift = observed_data.drift(run)
    widgets.heading("How far the representations drift")
    others = slice(1, n_prefix) if n_prefix > 1 else slice(0, 1)
    norms = list(zip(run.names, drift.norms, strict=False))
    lines = [Line(name, norm[:, 0]) for name, norm in norms]
    if n_prefix > 1:
        lines += [Line(name, norm[:, others].mean(-1)) for name, norm in norms]
    left, right = st.columns([2, 3], gap="large")
    with left:
        _lengths(lines, "the other prefix tokens'")
        widgets.note(
            "Euclidean length of the hidden state behind each layer: solid for the first token, dotted "
            "for the others' mean. A sink's state is far longer than the others'."
        )
    with right:
        if drift.cosine is None or drift.ratio is None:
            widgets.note("One regime was observed: there is nothing to compare its states with.")
            return
        widgets.chart(
            plots_attend.layer_map(
                [drift.cosine],
                ["cosine similarity between the regimes"],
                pieces,
                n_prefix,
                log=False,
                label="cosine",
            ),
            "Cosine similarity of each token's hidden state between the regimes, by layer.",
            key="attend-cosine",
        )
        middle = run.n_layers // 2
        widgets.note(
            f"1: the same direction in both. Behind layer {middle} it is "
            f"{fmt.number(float(drift.cosine[middle, 0]))} for the first token and "
            f"{fmt.number(float(drift.cosine[middle, others].mean()))} on average for the other prefix "
            f"tokens; the first token is {fmt.number(float(drift.ratio[middle, 0]))} times as long "
            f"as under {run.names[0]}."
        )


# The observed part's empty state: which command observes this prompt, and a button to queue it.


OBSERVING = (
    "One forward pass under each regime: for a model of a few hundred million parameters under a "
    "minute on a CPU, most of it loading and checking the model. A prompt of 256 tokens leaves "
    "about 40 MB for 30 layers of 9 heads."
)


def offer(page: Any, item_id: str) -> None:
    """The command for this item, or for the prompt typed here, with both regimes."""
    model = _model(page)
    try:
        words = attend_words(_config(model, item_id))
    except UserError as error:
        widgets.banner("error", "This cannot be observed", str(error))
        return
    widgets.command(jobs.command_text(words))
    known = jobs.list_jobs()
    waiting = next((job for job in known if job.words == words and job.is_active), None)
    if waiting is not None:
        jobs_view.watch(waiting)
    elif is_read_only():
        widgets.note(
            "This is a read-only view: run the line in a terminal where runs may be written."
        )
    elif st.button("Observe now …", key="observe-start", icon=":material/visibility:"):
        title = "Observed attention"
        ask.confirm("observe", words, title, known, notes=(OBSERVING,))
    ask.say_what_failed("observe")


def _config(model: str, item_id: str) -> AttendConfig:
    pair = (url.get("against") or "causal", url.get("regime") or "bidirectional")
    if item_id:
        task, row = data.task_and_row(item_id)
        return AttendConfig(model=model, task=task, doc_id=row, regimes=pair)
    return AttendConfig(
        model=model,
        prompt=url.get("prompt") or masks_view.PREFIX,
        continuation=url.get("cont") or masks_view.CONTINUATION,
        regimes=pair,
    )


def _model(page: Any) -> str:
    """The model of the chosen pair: what is looked at on the other pages."""
    for run in (page.pair.a, page.pair.b):
        if run is not None and run.model and not run.is_reference:
            return str(run.model)
    return EMBEDDED_MODEL


# Averages over items on the Masks page: what only they have, task by task and the drift.


def by_task(run: Observed, measure: str) -> None:
    """The measure in each task under each regime, with its interval."""
    tasks = run.metrics["n_by_task"]
    if len(tasks) < 2:
        return
    widgets.heading("By task")
    entries = run.metrics["observed"]
    rows = [
        (
            fmt.task(task),
            fmt.count(n),
            *(_cell(e["by_task"][task][measure], measure) for e in entries),
        )
        for task, n in tasks.items()
    ]
    everything = (_cell(entry["overall"]["prefix"][measure], measure) for entry in entries)
    rows.append(("all items", fmt.count(run.metrics["n_items"]), *everything))
    head, name = ("Task", "n", *run.names), f"attention-by-task_{run.info.id}"
    html.show(widgets.table(head, rows, name=name, total=True, left=(0,)))
    widgets.note("Mean over layers, heads and items, with its 95 % interval over items.")


def _cell(row: dict[str, Any], measure: str) -> str:
    if not row["mean"]:
        return fmt.NONE
    ends = [row[end][0] if row[end] else None for end in ("mean", "low", "high")]
    mean, low, high = map(fmt.number if measure == "entropy" else fmt.percent, ends)
    return f"{mean} [{low}, {high}]" if ends[1] is not None else mean


def drift(run: Observed) -> None:
    """Lengths of the hidden states, and how far they turn from the first regime's."""
    widgets.heading("How far the representations drift")
    left, right = st.columns(2, gap="large")
    with left:
        _lengths(_lines(run, "norm"), "the others', over items")
    with right:
        if cosines := _lines(run, "cosine"):  # the first regime has none with itself
            widgets.chart(
                plots_attend.by_layer(
                    cosines, f"cosine with {run.names[0]}", groups=2, skipped=1, percent=False
                ),
                f"Cosine similarity of hidden states with those under {run.names[0]}, by layer.",
                key="attend-cosine",
            )
    widgets.note(
        "Solid: the prefix's first token; dotted: its other tokens. Lengths are geometric "
        "means over items; bands: 95 % interval over items. Equal lines cover one another: "
        "a first token that is kept causal has the same states as under causal."
    )


def _lines(run: Observed, quantity: str) -> list[Line]:
    """A line for each group of tokens and each regime whose drift is stored."""
    stored = run.metrics.get("drift") or {}
    rows = [
        (name, stored.get(f"{quantity}_{number}_{group}") or {})
        for group in ("first", "others")
        for number, name in enumerate(run.names)
    ]
    return [
        Line(name, row["mean"], row["low"], row["high"]) for name, row in rows if row.get("mean")
    ]
