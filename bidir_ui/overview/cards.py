"""The five cards on top of the Overview: one finding each, with its n and uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from bidir_core.analyse import compare as core
from bidir_core.analyse.study import CAUSAL
from bidir_core.analyse.verdict import differ
from bidir_core.runs.layout import STAGE1, STAGE2
from bidir_ui.kit import fmt, html, url
from bidir_ui.overview import pair_view, source_panel
from bidir_ui.reading import analysis, story


@dataclass(frozen=True)
class Card:
    """One step of the story: title, headline number, a line under it. ``made``: its runs exist.

    A title claims something only where the numbers carry it; otherwise it is a question.
    """

    title: str
    big: str
    sub: str
    made: bool = True


NOT_RUN = "not run yet"


def all_cards(told: story.Story, result: core.Comparison | None) -> list[Card]:
    return [
        _hurts(told, result),
        _breaks(told, result),
        _source(told),
        _repair(told),
        _models(told),
    ]


def _hurts(told: story.Story, result: core.Comparison | None) -> Card:
    if result is None or told.a is None:
        return Card(
            "Does it hurt?",
            NOT_RUN,
            "Needs stage 1 (causal) and stage 2 (bidirectional prefill).",
            False,
        )
    row = result.macro
    title = {
        "worse": "It hurts",
        "better": "It helps",
        "equivalent": "It makes no difference",
        "undecided": "Does it hurt? Undecided",
    }[row.verdict]
    return Card(
        title,
        f"{fmt.points(row.delta)} points",
        f"Accuracy {fmt.percent(row.acc_a)} → {fmt.percent(row.acc_b)}. 95 % interval "
        f"{fmt.interval(row.low, row.high)}, n = {fmt.count(row.n)}, {told.a.extent}.",
    )


def _breaks(told: story.Story, result: core.Comparison | None) -> Card:
    if result is None or told.a is None or told.b is None:
        return Card(
            "One item breaks", NOT_RUN, "Shows one question whose right answer is lost.", False
        )
    row = result.macro
    return Card(
        "One item breaks",
        f"{fmt.count(row.broken)} broken",
        f"Of {fmt.count(row.n)} questions ({told.a.extent}); another {fmt.count(row.fixed)} become right. "
        "Look at one, token by token.",
    )


def _source(told: story.Story) -> Card:
    source = source_panel.find(told)
    row = source.headline if source else None
    if source is None or row is None:
        return Card(
            "Where does it come from?",
            NOT_RUN,
            "Keep the first token causal and measure again: sink=1.",
            False,
        )
    return Card(
        source_panel.title(source),
        f"{fmt.points(row.value)} points",
        f"Only the first token kept causal (sink=1), against {source.against}: "
        f"{fmt.interval_of(row.interval)}, n = {fmt.count(row.n)}, {source.base.extent}; "
        f"{pair_view.short(row.words)}.",
    )


def _repair(told: story.Story) -> Card:
    study = told.repair
    gap = study.difference(("base", CAUSAL), ("3B", study.regime)) if study else None
    if study is None or gap is None:
        return Card(
            "Does training repair it, and does the control?",
            NOT_RUN,
            "Fine-tune with the new mask (3B) and, as the control, without it (3C).",
            False,
        )
    items = study.some.extent
    interaction = study.repair.interaction if study.repair else None
    if interaction is None or interaction.estimate is None:
        return Card(
            story.title(study),
            f"{fmt.points(gap.value)} points",
            f"Stage 4 against stage 1: {fmt.interval_of(gap.interval)}, n = {fmt.count(gap.n)}, {items}. "
            "Without its control this may be ordinary tuning.",
        )
    e, n_seeds, n_all = interaction.estimate, interaction.n_seeds, len(study.by_accuracy)
    seed = f"one of {n_all} seeds" if n_all > 1 else "one seed"
    return Card(
        story.title(study),
        f"{fmt.points(e.value)} points",
        f"Interaction: how much more 3B gains over its control 3C under the new mask than under "
        f"causal. {fmt.interval(e.low, e.high)}, n = {fmt.count(e.n)}, {items}, "
        f"{f'{n_seeds} seeds' if n_seeds > 1 else seed}.",
    )


def _models(told: story.Story) -> Card:
    published = published_drop(told)
    if len(told.models) > 1:
        rows = [result.macro for pair in told.models if (result := analysis.try_compare(*pair))]
        values = [row.delta for row in rows]
        extents = list(dict.fromkeys(first.extent for first, _ in told.models))
        apart = differ([row.judgement.estimate for row in rows if row.judgement.estimate])
        return Card(
            "It differs by model" if apart else "Does it differ by model?",
            f"{len(values)} models",
            f"Differences from {fmt.points(min(values))} to {fmt.points(max(values))} points, "
            f"{' or '.join(extents)}; intervals in the panel.",
        )
    if published is not None:
        run = told.published[STAGE2]
        items = f" ({run.extent})" if run.limit else ""
        return Card(
            "Does it differ by model?",
            f"{fmt.points(published[2])} points",
            f"A published run of a 3B model{items} lost this much. Numbers only: no items, so no "
            "interval.",
        )
    return Card("Does it differ by model?", NOT_RUN, "Run stages 1 and 2 on a second model.", False)


def published_drop(told: story.Story) -> tuple[float, float, float] | None:
    """Macro accuracy of the published stages 1 and 2 and their difference, if recorded here."""
    first, second = (told.published.get(stage) for stage in (STAGE1, STAGE2))
    if first is None or second is None:
        return None
    a, b = first.macro.get("acc"), second.macro.get("acc")
    return None if a is None or b is None else (a, b, b - a)


def show(cards: list[Card], current: int) -> None:
    """Five cards side by side; the chosen one has the accent."""
    for number, (column, card) in enumerate(zip(st.columns(5, gap="small"), cards, strict=True), 1):
        on = "on" if number == current else "off"
        with (
            column,
            st.container(border=True, height="stretch", key=f"card-{number}-{on}", gap="small"),
        ):
            html.show(
                html.div(
                    "b b-card",
                    html.div("step", f"{number} of 5"),
                    html.div("title", card.title),
                    html.div("big" if card.made else "big off", card.big),
                    html.div("sub", fmt.tie(card.sub)),
                )
            )
            label = "Shown below" if number == current else "Show"
            if st.button(
                label,
                key=f"panel-{number}",
                type="tertiary",
                disabled=number == current,
                help=None if number == current else card.title,
            ):
                url.put(panel=number)
                st.rerun()
