"""The Masks page's parts: where the tokens come from, the cells, and what a click says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import streamlit as st

from bidir_core import regimes
from bidir_core.common.errors import UserError
from bidir_core.report import plots
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import analysis

MAX_TOKENS = 512
PREFIX = "The capital of France is the city of"
CONTINUATION = " Paris on the Seine"
NAMES = ("does not see", "sees, as in causal", "sees by looking ahead", "no longer sees")
DIFFERENCES = (
    "neither lets it see",
    "both let it see",
    "only the right one lets it see",
    "only the left one lets it see",
)
VIEWS = {"both": "Side by side", "difference": "Difference"}
SIDE = 380  # pixels of a square of two that stand side by side, both whole on a laptop's screen


@dataclass(frozen=True)
class Tokens:
    """Pieces of a sequence; the first ``n_prefix`` are the prefix."""

    pieces: tuple[str, ...]
    n_prefix: int
    note: str = ""

    def cut(self) -> Tokens:
        """At most MAX_TOKENS, keeping the end of the prefix where prefix and continuation meet."""
        if len(self.pieces) <= MAX_TOKENS:
            return self
        n_own = min(len(self.pieces) - self.n_prefix, MAX_TOKENS // 4)
        n_prefix = min(self.n_prefix, MAX_TOKENS - n_own)
        start = self.n_prefix - n_prefix
        note = (
            f"{fmt.count(len(self.pieces))} tokens; drawn are {n_prefix} of the prefix and "
            f"{n_own} of the continuation, numbered from there."
        )
        return replace(
            self, pieces=self.pieces[start : self.n_prefix + n_own], n_prefix=n_prefix, note=note
        )


MODES = {"requested": "Requested", "observed": "Observed"}


def mode() -> str:
    """Requested mask or observed attention; a link that names an observed run opens that."""
    default = "observed" if url.get("attend") else "requested"
    return url.segments("What to show", name="show", options=MODES, default=default)


def words(text: str) -> list[str]:
    """A text in words, each with the space before it."""
    return re.findall(r"\s*\S+", text)


def own_prompt() -> Tokens:
    """Tokens of a prompt typed by the reader, split in words."""
    with st.popover("Change the text", icon=":material/edit:"):
        prompt = url.text("Prompt (the prefix)", name="prompt", default=PREFIX, max_chars=4000)
        text = url.text("Continuation", name="cont", default=CONTINUATION, max_chars=1000)
    prefix, continuation = words(prompt or PREFIX), words(text or CONTINUATION)
    note = "The text is split into words here, not into a tokenizer's tokens."
    return Tokens((*prefix, *continuation), len(prefix), note).cut()


def from_item(page: Any, item_id: str) -> Tokens | None:
    """Tokens of a stored item: its first context and the right choice. None if no run has them."""
    for run in (page.pair.a, page.pair.b, *page.runs):
        if run is None or not run.can_pair:
            continue
        try:
            record = analysis.record_with_texts(run, item_id)
        except UserError:
            continue
        if record is None or record["contexts"] is None:
            continue
        context = analysis.choice_context(record, record["gold"])
        return _tokens(record, context)
    return None


def _tokens(record: dict[str, Any], context: int) -> Tokens:
    gold, note = record["gold"], ""
    texts = record["contexts"][context], record["continuations"][gold]
    if record["prefix_token_offsets"] is None:
        note = "This run kept no tokens: split in words."
        prefix, continuation = map(words, texts)
    else:
        prefix = analysis.cut_into_tokens(texts[0], record["prefix_token_offsets"][context])
        offsets = record["continuation_token_offsets"][gold]
        continuation = analysis.cut_into_tokens(texts[1], offsets)
    return Tokens((*prefix, *continuation), len(prefix), note).cut()


# A dial as a chip: its field, what the chip sets it to, and its words where it is set.
Chip = tuple[str, Any, Callable[[Any], str]]


def _first(n: int) -> str:
    return "first token" if n == 1 else f"first {n} tokens"


CHIPS: dict[str, Chip] = {
    "ahead": ("bidirectional", True, lambda _: "looks ahead"),
    "sink": ("sink", 1, lambda n: f"{_first(n or 1)} causal"),
    "self": ("self_token", 0, lambda j: f"token {j or 0} alone"),
    "hide": ("hide", 0, lambda j: f"token {j or 0} hidden"),
    "tail": ("tail", 1, lambda n: "last token causal" if (n or 1) == 1 else f"last {n} causal"),
    "layers": (
        "layers",
        (10, None),
        lambda span: f"layers {span[0]} to {'last' if span[1] is None else span[1]}",
    ),
    "lambda": ("lam", 0.1, lambda x: f"strength {x:g}"),
}
_UNSET = {spec.name: spec.default for spec in fields(regimes.Regime)}


def chosen_chips(regime: regimes.Regime) -> list[str]:
    return [name for name, (dial, *_) in CHIPS.items() if getattr(regime, dial) != _UNSET[dial]]


def with_chips(regime: regimes.Regime, wanted: Sequence[str]) -> regimes.Regime:
    """The regime with exactly these chips set. What was set keeps its value; a dial that only
    makes sense where something looks ahead brings that along."""
    before = chosen_chips(regime)
    values: dict[str, Any] = {}
    for name, (dial, value, _) in CHIPS.items():
        if (name in wanted) != (name in before):
            values[dial] = value if name in wanted else _UNSET[dial]
    added = set(wanted) - set(before) - {"hide"}
    if added and "ahead" not in before:
        values["bidirectional"] = True
    return replace(regime, **values)


def regime_box(label: str, name: str, default: str) -> regimes.Regime | None:
    """A regime built with chips or typed as its string; None (with the reason) if it is not one."""
    text = url.text(label, name=name, default=default, max_chars=200)
    try:
        regime = regimes.parse_regime((text or default).strip())
    except UserError as error:
        widgets.banner("error", "Not a regime", str(error))
        return None

    def words_of(chip: str) -> str:
        dial, value, describe = CHIPS[chip]
        now = getattr(regime, dial)
        return describe(value if now == _UNSET[dial] else now)

    key = f"chips:{name}"
    st.session_state[key] = chosen_chips(regime)

    def clicked() -> None:
        chosen = str(with_chips(regime, st.session_state[key]))
        url.put(**{name: "" if chosen == default else chosen})

    st.pills(
        f"Dials of {label.lower()}",
        list(CHIPS),
        selection_mode="multi",
        key=key,
        on_change=clicked,
        format_func=words_of,
        label_visibility="collapsed",
        wrap=True,
    )
    return regime


def cells(regime: regimes.Regime, tokens: Tokens, layer: int | None) -> np.ndarray:
    """0 hidden, 1 seen looking back, 2 seen looking ahead; int [query, key]."""
    total = len(tokens.pieces)
    mask = regimes.visibility(regime, tokens.n_prefix, total, layer=layer)
    ahead = np.arange(total)[None, :] > np.arange(total)[:, None]
    return mask.astype(np.int8) + (mask & ahead)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """0 hidden in both, 1 seen in both, 2 gained by the first, 3 lost by it."""
    a, b = first > 0, second > 0
    return np.select([a & b, a & ~b, ~a & b], [1, 2, 3], 0).astype(np.int8)


def legend(view: str) -> html.Html:
    hidden, back, ahead, lost = plots.MASK_COLOURS
    if view == "difference":
        return widgets.legend(
            (back, "seen in both"),
            (ahead, "only on the right"),
            (lost, "only on the left"),
            (hidden, "in neither"),
        )
    return widgets.legend(
        (back, "sees what precedes it"),
        (ahead, "looks ahead"),
        (hidden, "hidden"),
        (plots.RED, "end of the prefix"),
    )


def facts(shown: np.ndarray, regime: regimes.Regime, tokens: Tokens) -> None:
    """One line over a picture: the regime, what looks ahead in it, and how strongly."""
    n = tokens.n_prefix
    ahead, possible = int((shown == 2).sum()), n * (n - 1) // 2
    strength = f", strength λ = {regime.lam:g}" if regime.lam < 1 else ""
    where = ""
    if regime.layers is not None:
        first, last = regime.layers
        where = f", in layers {first} to {'the last' if last is None else last} only"
    counted = f"{fmt.count(ahead)} of {fmt.count(possible)} look-ahead cells"
    widgets.note(html.el("b", str(regime)), f": {counted}{strength}{where}")


def explain(
    point: tuple[int, int], pictures: Sequence[tuple[str, np.ndarray]], tokens: Tokens, view: str
) -> None:
    """What the clicked cell says, in each picture."""
    query, key = int(point[0]), int(point[1])
    names = DIFFERENCES if view == "difference" else NAMES
    meanings = [f"{name} {names[int(shown[query, key])]}".strip() for name, shown in pictures]
    two_tokens(tokens.pieces, tokens.n_prefix, query, key, "; ".join(meanings) + ":")


def two_tokens(pieces: Sequence[str], n_prefix: int, query: int, key: int, verb: str) -> None:
    """``Token 3, Paris (prefix): looks at token 0, The (prefix).``"""

    def named(word: str, number: int) -> html.Html:
        part = "prefix" if number < n_prefix else "continuation"
        text = widgets.code_text(fmt.clip(pieces[number], 60))
        return html.join(html.el("b", f"{word} {number}, "), text, f" ({part})")

    html.show(html.div("b", named("Token", query), f": {verb} ", named("token", key), "."))
