"""The Item page's parts: the prompt with its tokens, the choices, the heat strip, other runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import streamlit as st

from bidir_core import regimes
from bidir_core.common.errors import UserError
from bidir_core.data import item_texts
from bidir_core.data.item_texts import distinct_ends
from bidir_core.report import plots
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.kit.html import Html, div, el, join, span
from bidir_ui.masks import observed_data
from bidir_ui.reading import analysis
from bidir_ui.reading.analysis import choice_context, cut_into_tokens
from bidir_ui.reading.filters import FlipFilter, Neighbours

MAX_TOKENS = 1500  # more tokens than this make a page nobody reads; the raw record has them all

Record = dict[str, Any]


def fuller(a: Record | None, b: Record | None) -> Record | None:
    """The record to draw the item from: one with token borders if there is one."""
    both = [record for record in (a, b) if record is not None]
    with_tokens = (held for held in both if held["prefix_token_offsets"] is not None)
    return next(with_tokens, both[0] if both else None)


def prompt(record: Record, context: int, continuation: int | None, *, borders: bool) -> Html:
    """One context with token borders, the prefix's end marked, then one choice."""
    offsets = record["prefix_token_offsets"]
    pieces = cut_into_tokens(
        record["contexts"][context], None if offsets is None else offsets[context]
    )
    hidden = len(pieces) - MAX_TOKENS
    shown = pieces[:MAX_TOKENS]
    if hidden > 0:
        shown = pieces[: MAX_TOKENS // 2] + pieces[-(MAX_TOKENS - MAX_TOKENS // 2) :]
    tokens = [
        span("b-tok", _budget(piece), title=f"prefix token {i}") for i, piece in enumerate(shown)
    ]
    if hidden > 0:
        gap = span("b-edge", f"{fmt.count(hidden)} tokens not shown; the raw record has them")
        tokens.insert(MAX_TOKENS // 2, gap)
    n_prefix = record["n_prefix_tokens"][context]
    counted = "" if n_prefix is None else f" · {fmt.count(n_prefix)} tokens"
    edge = span("b-edge", f"prefix ends{counted}")
    tail: list[Html] = []
    if continuation is not None:
        text = record["continuations"][continuation]
        offsets = record["continuation_token_offsets"]
        pieces = cut_into_tokens(text, None if offsets is None else offsets[continuation])
        tail = [span("b-tok b-gold", _budget(piece)) for piece in pieces[:MAX_TOKENS]]
    return div("b b-prompt" + ("" if borders else " b-plain"), *tokens, edge, *tail, dir="auto")


def _budget(piece: str) -> str:
    """A single token piece of a hostile text can be the whole text."""
    return piece if len(piece) <= 4000 else piece[:4000] + "…"


class Reading(NamedTuple):
    """What one reading made of an item's choices; ``who`` is whose choice ``pick`` is."""

    name: str
    colour: str
    ll: Sequence[float] | None
    pick: int | None
    who: str


def choices(
    record: Record, a: Record | None, b: Record | None, pred: str, name_a: str, name_b: str
) -> Html:
    """Per choice: its text, log-likelihood in both runs as dots and numbers, and who chose it."""
    readings = [
        Reading(
            name, colour, run["ll"] if run else None, run[pred] if run else None, f"{who}'s choice"
        )
        for run, colour, who, name in (
            (a, "grey", "baseline", name_a),
            (b, "blue", "candidate", name_b),
        )
    ]
    return choice_table(record, readings, change=True)


def choice_table(
    record: Mapping[str, Any], readings: Sequence[Reading], *, change: bool = False
) -> Html:
    """A row a choice, a column a reading; ``change``: the second's minus the first's beside them."""
    n_choices = len(record["n_continuation_tokens"])
    texts = record["continuations"] or [f"choice {i}" for i in range(n_choices)]
    if record["contexts"] and len(record["contexts"]) > 1:
        texts = distinct_ends(record["contexts"])
    scale = Scale.of([reading.ll for reading in readings if reading.ll is not None])
    rows = []
    for choice, text in enumerate(texts):
        marks = [span("gold", "✓ right answer")] if choice == record["gold"] else []
        marks += [
            el("span", widgets.dot(reading.colour), reading.who)
            for reading in readings
            if reading.pick == choice
        ]
        shown = el("span", fmt.clip(str(text).strip(), 300), dir="auto")
        values = [None if reading.ll is None else reading.ll[choice] for reading in readings]
        cells: list[object] = [join(span("b-ix", choice), shown, div("b-badges", *marks))]
        cells += [
            scale.dot(value, reading.colour, reading.name)
            for value, reading in zip(values, readings, strict=True)
        ]
        if change:
            moved = None if None in values else values[1] - values[0]  # type: ignore[operator]
            cells.append(join(span("b-phone", "Change "), fmt.signed(moved)))
        rows.append(cells)
    head: list[object] = ["Choice"]
    head += [join(widgets.dot(r.colour), r.name, " ", widgets.small(LIKELY)) for r in readings]
    head += ["Change"] if change else []
    name = f"choices_{record['task']}_{record['doc_id']}"
    return div("b-choices", widgets.table(head, rows, name=name, left=(0,)))


LIKELY = "nats; more likely →"


@dataclass(frozen=True)
class Scale:
    """Log-likelihoods as dots on one line, from the least likely choice, left, to the likeliest.
    No bars: a log has no zero to begin at."""

    low: float
    high: float

    @classmethod
    def of(cls, readings: Iterable[Sequence[float]]) -> Scale:
        values = [ll for reading in readings for ll in reading if math.isfinite(ll)]
        return cls(min(values, default=0.0), max(values, default=0.0))

    def dot(self, value: float | None, colour: str, name: str = "") -> Html:
        """``name``: of the reading, where a narrow screen shows no head above it."""
        if value is None:
            return Html(fmt.NONE)
        room = self.high - self.low
        at = min(1.0, max(0.0, (value - self.low) / room)) if room else 1.0
        mark = span(f"b-at b-{colour}", style=f"left:{100 * at:.1f}%")
        line = div("track b-line-track", mark)
        return div("b-cellbar", span("b-phone", name), line, span("b-num", fmt.number(value)))


def token_differences(a: Record, b: Record, choice: int) -> list[tuple[str, float, float]] | None:
    """(token, log-likelihood in a, in b) along one choice; None where a run kept no tokens."""
    if a["token_ll"] is None or b["token_ll"] is None:
        return None
    ll_a, ll_b = a["token_ll"][choice], b["token_ll"][choice]
    if len(ll_a) != len(ll_b):
        return None
    text = (a["continuations"] or b["continuations"] or [""] * (choice + 1))[choice]
    offsets = a["continuation_token_offsets"]
    pieces = cut_into_tokens(text, None if offsets is None else offsets[choice])
    if len(pieces) != len(ll_a):
        pieces = [f"token {i} " for i in range(len(ll_a))]
    return list(zip(pieces, map(float, ll_a), map(float, ll_b), strict=True))


def heat_strip(rows: Sequence[tuple[str, float, float]], scale: float) -> Html:
    """Tokens of a choice, coloured by how much each one's log-likelihood moved."""
    cells = []
    for piece, ll_a, ll_b in rows[:MAX_TOKENS]:
        moved = ll_b - ll_a
        strength = min(abs(moved) / scale, 1.0) * 0.65 if scale else 0.0
        rgb = "0 158 115" if moved > 0 else "213 94 0"
        title = f"{fmt.number(ll_a)} → {fmt.number(ll_b)} nats ({fmt.signed(moved)})"
        cells.append(
            span(
                "t",
                _budget(piece),
                el("small", f" {fmt.signed(moved, 1)}"),
                style=f"background:rgb({rgb} / {strength:.2f})",
                title=title,
            )
        )
    return div("b b-heat", *cells, dir="auto")


def heat_scale(scale: float) -> Html:
    low, high = fmt.number(-scale, 1), fmt.signed(scale, 1)
    return div("b-scale", f"{low} nats, less likely", span("ramp"), f"{high} nats, more likely")


def mask_picture(record: Record, regime: str, choice: int) -> Html | None:
    """A thumbnail of who sees whom for this item; None where the record's regime is unreadable."""
    context = choice_context(record, choice)
    counts = record["n_prefix_tokens"][context], record["n_continuation_tokens"][choice]
    if None in counts:  # an imported run counted no tokens
        return None
    n_prefix, n_total = int(counts[0]), int(sum(counts))
    kept = min(n_prefix, 160)  # a thumbnail: beyond this only the proportions matter
    try:
        parsed = regimes.parse_regime(regime)
    except UserError:
        return None
    mask = regimes.visibility(parsed, kept, kept + min(n_total - n_prefix, 40))
    return widgets.mask_svg(mask, kept, f"Who sees whom under {regime}")


def masks_of_both(record: Record, regimes_shown: Sequence[str], choice: int) -> Html | None:
    """Both runs' masks, side by side, each under its regime's name; None where there is none."""
    pictures = [(regime, mask_picture(record, regime, choice)) for regime in regimes_shown]
    shown = [div("", div("b-note", name), picture) for name, picture in pictures if picture]
    if not shown:
        return None
    legend = widgets.legend(
        ("rgba(127,127,127,.9)", "sees what precedes it"),
        (plots.BLUE, "looks ahead"),
        (plots.RED, "end of the prefix"),
    )
    return join(div("b b-pairs", *shown), legend)


def facts(record: Record, a: Record | None, b: Record | None) -> Html:
    """The item's numbers as a definition list."""
    rows: list[tuple[str, object]] = [
        ("task", fmt.task(record["task"])),
        ("prefix", _tokens(record["n_prefix_tokens"], longest=True)),
        ("choices", _tokens(record["n_continuation_tokens"])),
        ("margin, baseline", _margin(a)),
        ("margin, candidate", _margin(b)),
    ]
    if a and b and not fmt.missing(a["margin"]) and not fmt.missing(b["margin"]):
        rows.append(("moved by", f"{fmt.signed(b['margin'] - a['margin'])} nats"))
    rows.append(("hash", span("b-mono", str(record["doc_hash"])[:16])))
    return widgets.facts_html(rows)


def _tokens(counts: Sequence[int | None], *, longest: bool = False) -> str:
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return "tokens not recorded"
    shown = [max(known)] if longest else known
    return " / ".join(map(fmt.count, shown)) + " tokens"


def _margin(record: Record | None) -> str:
    if record is None or fmt.missing(record["margin"]):
        return fmt.NONE
    return f"{fmt.signed(record['margin'])} nats"


def flip_of(a: Record, b: Record, metric: str) -> str:
    """The flip class of one item, as the flips table has it."""
    pred, correct = ("pred_norm", "correct_norm") if metric == "acc_norm" else ("pred", "correct")
    if a[correct] is None or b[correct] is None:
        pred, correct = "pred", "correct"
    if a[correct] and b[correct]:
        return "same_right"
    if a[correct] != b[correct]:
        return "broken" if a[correct] else "fixed"
    return "same_wrong" if a[pred] == b[pred] else "changed_wrong"


def sentence(a: Record, b: Record, metric: str) -> Html:
    """What happened to this item, in one sentence with its numbers."""
    kind = flip_of(a, b, metric)
    pred = "pred_norm" if metric == "acc_norm" and a["pred_norm"] is not None else "pred"
    picks = (
        f"the answer goes from choice {a[pred]} to {b[pred]}"
        if a[pred] != b[pred]
        else f"the answer stays choice {a[pred]}"
    )
    outcomes = {
        "broken": el("span", "▼ Broken", cls="b-down"),
        "fixed": el("span", "▲ Fixed", cls="b-up"),
        "changed_wrong": el("b", "◇ Wrong in both, but another answer"),
        "same_right": el("b", "● Right in both"),
        "same_wrong": el("b", "○ Wrong in both"),
    }
    if fmt.missing(a["margin"]) or fmt.missing(b["margin"]):
        return join(outcomes[kind], f": {picks}. Only the answers are kept, not their scores.")
    return join(
        outcomes[kind],
        f": {picks}. The right answer's lead over the best other choice goes from "
        f"{fmt.signed(a['margin'])} to {fmt.signed(b['margin'])} nats, by ",
        el("b", fmt.signed(b["margin"] - a["margin"]), cls="b-num"),
        ".",
    )


def other_runs(item_id: str, rows: Sequence[tuple[str, Record | None, bool]], pred: str) -> Html:
    """Every run's choice for this item: (run label, its record, is it in the pair)."""
    cells = []
    for label, record, in_pair in rows:
        if record is None or record["ll"] is None:
            continue
        pick = record[pred] if record[pred] is not None else record["pred"]
        right = pick == record["gold"]
        mark = el("span", "✓ right", cls="b-up") if right else el("span", "✕ wrong", cls="b-down")
        name = el("b", label) if in_pair else label
        cells.append((name, pick, mark, fmt.signed(record["margin"])))
    head = ("Run", "Choice", "", "Margin, nats")
    return widgets.table(head, cells, name=f"answers_{item_id}", left=(0,))


# The Item page's top bar: where the item stands in the filter, keys to move, a link to copy.


def bar(page: Any, item_id: str, near: Neighbours, chosen: FlipFilter) -> None:
    """Title, position, the four moves (k j p n), the way back, the link."""
    title, moves = st.columns([4, 7], vertical_alignment="bottom")
    with title:
        widgets.page_link("flips", "Flips", url.params(**chosen.params), "arrow_back")
        html.show(html.el("h1", fmt.clip(item_id, 60), cls="b-title"))
        among = "in this filter" if chosen.params else "paired items"
        where = (
            f"{fmt.count(near.position + 1)} of {fmt.count(near.total)} {among}"
            if near.position is not None
            else f"Not among the {fmt.count(near.total)} {among}"
        )
        widgets.note(where)
    with (
        moves,
        st.container(horizontal=True, horizontal_alignment="right", gap="xsmall", key="item-moves"),
    ):
        for label, key, target, icon in (
            ("Item", "k", near.previous, "chevron_left"),
            ("Item", "j", near.next, "chevron_right"),
            ("Flip", "p", near.previous_flip, "keyboard_double_arrow_left"),
            ("Flip", "n", near.next_flip, "keyboard_double_arrow_right"),
        ):
            back = key in "kp"
            st.button(
                label,
                key=f"go-{key}",
                shortcut=key,
                disabled=target is None,
                icon=f":material/{icon}:",
                on_click=_go,
                args=(target,),
                icon_position="left" if back else "right",
                help=f"{'Previous' if back else 'Next'} {label.lower()} in this filter",
            )
        with st.popover("Link", icon=":material/link:"):
            widgets.note("Opens this item with these runs and this filter. Copy it:")
            query = url.params(a=page.pair.a.id, b=page.pair.b.id, item=item_id, **chosen.params)
            query |= {"borders": url.get("borders")} if url.get("borders") else {}
            st.code(url.absolute("item", query), language=None, wrap_lines=True)


def raw_record(item_id: str, records: dict[str, dict[str, Any] | None]) -> None:
    """Both runs' records as they are stored, to read and to download."""
    text = json.dumps(records, indent=1, ensure_ascii=False, default=analysis.plain)
    st.code(item_texts.visible(text[:20_000]), language=None, height=360)
    name = f"{item_id.replace('/', '_')}.json"
    widgets.download("JSON", text, name, "application/json", key="item-json")


def observed_links(page: Any, item_id: str) -> None:
    """Links to where a model that ran over this item really looked: the newest run of each pair
    of regimes, of the chosen pair's models."""
    models = {run.model for run in (page.pair.a, page.pair.b) if run is not None}
    newest: dict[tuple[str, ...], observed_data.Observed] = {}
    for observed in observed_data.listed(page.runs):
        if observed.item == item_id and observed.info.model in models:
            newest.setdefault((observed.info.model, *observed.names), observed)
    for observed in newest.values():
        label = f"Observed attention: {' and '.join(map(str, observed.regimes))}"
        query = url.params(item=item_id, show="observed", attend=observed.info.id)
        widgets.page_link("masks", label, query, "visibility")


def _go(target: str | None) -> None:
    if target:
        url.put(item=target)


def strips(
    record: dict[str, Any], a: dict[str, Any] | None, b: dict[str, Any] | None
) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Token differences of the choices that matter: the right one and what each run chose."""
    if not a or not b or a["error"] or b["error"]:
        return []
    names: dict[int, str] = {record["gold"]: "right answer"}
    for run, who in ((a, "baseline's choice"), (b, "candidate's choice")):
        names[run["pred"]] = f"{names[run['pred']]}, {who}" if run["pred"] in names else who
    out = []
    for choice, name in names.items():
        rows = token_differences(a, b, choice)
        if rows:
            out.append((f"Choice {choice}, {name}", rows))
    return out
