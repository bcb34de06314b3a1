"""What each of the Overview's five cards opens into."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from bidir_core.analyse import compare as core
from bidir_core.data import item_texts
from bidir_core.report import plots
from bidir_core.runs.layout import STAGE1, STAGE2
from bidir_ui.item import item_view
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.overview import cards, pair_view, repair_panel, source_panel
from bidir_ui.reading import analysis, filters, pair, story


def draw(number: int, told: story.Story, result: core.Comparison | None) -> None:
    """The panel of one card."""
    (_hurts, _breaks, source_panel.draw, repair_panel.draw, _models)[number - 1](told, result)


def _hurts(told: story.Story, result: core.Comparison | None) -> None:
    if result is None:
        return pair.no_pair()
    widgets.lead(
        "A causal language model reads its prompt from left to right. Here the prompt's tokens see "
        f"each other in both directions, without any training. Macro accuracy moves by "
        f"{pair_view.delta_text(result.macro.judgement, told.a.extent if told.a else '')}."
    )
    frame = pd.DataFrame(
        {
            "label": [item_texts.visible(fmt.task(row.task)) for row in result.rows],
            "a": [row.acc_a for row in result.rows],
            "b": [row.acc_b for row in result.rows],
            "chance": [row.chance for row in result.rows],
            "total": [row.task == core.MACRO for row in result.rows],
        }
    )
    chart, side = st.columns([1, 1], gap="medium")
    with chart:
        widgets.chart(
            plots.levels(frame, "causal", "bidirectional"),
            "Accuracy per task under causal and bidirectional prefill; the table beside it has "
            "the numbers.",
            key="levels",
        )
    with side:
        rows = [
            (
                *(fmt.task(row.task), fmt.count(row.n)),
                *map(fmt.percent, (row.acc_a, row.acc_b, row.chance)),
                _published(told, row.task),
            )
            for row in result.rows
        ]
        head = ("Task", "n", "Causal", "Bidir.", "Chance", "Published")
        html.show(widgets.table(head, rows, total=True))
        whole = told.whole and next((r for r in told.whole[1] if r.regime == "bidirectional"), None)
        on_whole = analysis.try_compare(told.whole[0], whole) if told.whole and whole else None
        if told.whole and on_whole is not None:
            dtype = told.whole[0].dtype
            widgets.note(
                f"On the whole validation sets, {dtype}: {pair_view.delta_text(on_whole.macro.judgement)}."
            )
        if told.published:
            widgets.note(published_note(told))
    return None


def published_note(told: story.Story) -> str:
    run = next(iter(told.published.values()))
    return (
        f"Published: {fmt.clip(run.model, 60)}, limit 500. Numbers only; without its items there "
        "is no paired interval, and it is another model."
    )


def _published(told: story.Story, task: str) -> str:
    values = []
    for stage in (STAGE1, STAGE2):
        run = told.published.get(stage)
        if run is None:
            return fmt.NONE
        row = run.macro if task == core.MACRO else run.tasks.get(task, {})
        values.append(row.get("acc"))
    return " → ".join(fmt.percent(value).removesuffix(" %") for value in values)


def _breaks(told: story.Story, result: core.Comparison | None) -> None:
    if result is None or told.a is None or told.b is None:
        return pair.no_pair()
    frame = analysis.flips(told.a, told.b, "acc")
    broken = frame[(frame["flip"] == "broken") & (frame["text"] != "")]
    broken = broken[broken["length"].between(8, 70)]
    if broken.empty:
        widgets.banner(
            "empty", "No example to show", "No broken item of moderate length with texts."
        )
        return None
    # Confidently right before: the clearest example is not the one that was a coin toss.
    sure = broken[broken["margin_a"] > 1.0]
    item_id = str((broken if sure.empty else sure)["item_id"].iloc[0])
    a, b = (analysis.record_with_texts(run, item_id) for run in (told.a, told.b))
    if not a or not b or a["contexts"] is None:
        widgets.banner("info", "The texts are not here", "These runs kept none (--compact).")
        return None
    html.show(html.div("b b-lead", item_view.sentence(a, b, "acc")))
    html.show(item_view.prompt(a, analysis.choice_context(a, a["gold"]), a["gold"], borders=True))
    html.show(item_view.choices(a, a, b, "pred", "Causal", "Bidirectional"))
    chosen = filters.FlipFilter(flip=("broken",))
    query = {"a": told.a.id, "b": told.b.id, "item": item_id, **chosen.params}
    n_broken = fmt.count((frame["flip"] == "broken").sum())
    with st.container(horizontal=True):
        widgets.page_link("item", "Open this item", query, "article")
        del query["item"]
        widgets.page_link("flips", f"All {n_broken} broken items", query, "swap_vert")
    return None


MODELS_HEAD = (
    "Model",
    "n",
    "Causal",
    "Bidir.",
    "Difference, points",
    "95 % interval",
    "Kept above chance",
)


def _models(told: story.Story, result: core.Comparison | None) -> None:
    frame, rows = [], []
    for first, second in told.models:
        compared = analysis.try_compare(first, second)
        if compared is None:
            continue
        row = compared.macro
        delta, interval = fmt.points(row.delta), fmt.interval(row.low, row.high)
        name = fmt.clip(first.model.split("/")[-1], 36)
        dot = plots.dot_row(name, row.delta, row.judgement, f"{delta}  {interval}")
        frame.append(dot | {"colour": plots.BLUE, "symbol": "circle"})
        kept = compared.above_chance.value
        numbers = (fmt.count(row.n), fmt.percent(row.acc_a), fmt.percent(row.acc_b))
        share = fmt.percent(kept, 0) if kept is not None else "not stated"
        rows.append((first.model, *numbers, delta, interval, share))
    drop = cards.published_drop(told)
    if drop is not None:
        model = next(iter(told.published.values())).model
        text = f"{fmt.points(drop[2])}  published, no interval"
        dot = plots.dot_row(fmt.clip(model.split("/")[-1], 36), drop[2], None, text)
        frame.append(dot | {"symbol": "circle-open"})
        name = html.join(model, " ", widgets.small("published, numbers only"))
        accuracies = (fmt.percent(drop[0]), fmt.percent(drop[1]), fmt.points(drop[2]))
        rows.append((name, fmt.NONE, *accuracies, "no items", fmt.NONE))
    if frame:
        title = "Stage 2 minus stage 1, points (95 % interval)"
        widgets.lead("The same change of mask, without training, on each model run so far:")
        widgets.chart(
            plots.dots(pd.DataFrame(frame), title=title, reference=0.0),
            "Damage per model; the table below has the numbers.",
            key="models",
        )
        html.show(widgets.table(MODELS_HEAD, rows))
    if len(told.models) < 2:
        widgets.not_run(
            "A second model with its items: without one nobody can say, with an interval, whether "
            "models differ. Two evaluations do it; any decoder from the hub or a local folder works:",
            f"{pair.EVAL} --limit 500 --model MODEL",
            f"{pair.EVAL} --limit 500 --model MODEL --prefill-bidirectional",
        )


def current() -> int:
    """The panel the URL asks for; 1 if it asks for none or for one that does not exist."""
    text = url.get("panel")
    return int(text) if text in {"1", "2", "3", "4", "5"} else 1
