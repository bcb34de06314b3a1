"""The Masks page's parts: where the tokens come from, the cells, and what a click says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    "only this regime lets it see",
    "only the other lets it see",
)
VIEWS = {"regime": "This regime", "against": "Compared with", "difference": "Difference"}


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
    return str(
        url.bound(
            st.segmented_control,
            "What to show",
            name="show",
            options=list(MODES),
            required=True,
            format_func=MODES.get,
            label_visibility="collapsed",
            read=lambda text: text if text in MODES else default,
        )
    )


def words(text: str) -> list[str]:
    """A text in words, each with the space before it."""
    return re.findall(r"\s*\S+", text)


def own_prompt() -> Tokens:
    """Tokens of a prompt typed by the reader, split in words."""
    left, right = st.columns([3, 2])
    with left:
        prefix = url.text("Prompt (the prefix)", name="prompt", default=PREFIX, max_chars=4000)
    with right:
        own = url.text("Continuation", name="cont", default=CONTINUATION, max_chars=1000)
    first, rest = words(prefix or PREFIX), words(own or CONTINUATION)
    return Tokens((*first, *rest), len(first), "Split in words; a tokenizer would cut finer.").cut()


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
    gold = record["gold"]
    if record["prefix_token_offsets"] is None:
        first, rest = words(record["contexts"][context]), words(record["continuations"][gold])
        return Tokens((*first, *rest), len(first), "This run kept no tokens: split in words.").cut()
    first = analysis.cut_into_tokens(
        record["contexts"][context], record["prefix_token_offsets"][context]
    )
    rest = analysis.cut_into_tokens(
        record["continuations"][gold], record["continuation_token_offsets"][gold]
    )
    return Tokens((*first, *rest), len(first)).cut()


def regime_box(label: str, name: str, default: str) -> regimes.Regime | None:
    """A regime typed as its string; None (with the reason shown) if it is not one."""
    text = url.text(label, name=name, default=default, max_chars=200)
    try:
        return regimes.parse_regime((text or default).strip())
    except UserError as error:
        widgets.banner("error", "Not a regime", str(error))
        return None


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
            (ahead, "only in this regime"),
            (lost, "only in the other"),
            (hidden, "in neither"),
        )
    return widgets.legend(
        (back, "sees what precedes it"), (ahead, "looks ahead"), (hidden, "hidden")
    )


def facts(shown: np.ndarray, regime: regimes.Regime, tokens: Tokens) -> None:
    """Counts of the picture, and the strength of looking ahead."""
    n = tokens.n_prefix
    possible = n * (n - 1) // 2
    ahead = int((shown == 2).sum())
    rows = [
        ("regime", str(regime)),
        ("tokens", f"{n} prefix + {len(tokens.pieces) - n} continuation"),
        ("look-ahead cells", f"{fmt.count(ahead)} of {fmt.count(possible)} possible"),
        ("their strength", f"λ = {regime.lam:g}" if regime.lam < 1 else "full"),
    ]
    if regime.layers is not None:
        first, last = regime.layers
        rows.append(
            ("layers", f"{first} to {'the last' if last is None else last}; causal in the others")
        )
    widgets.facts(rows)


def explain(point: tuple[int, int], shown: np.ndarray, tokens: Tokens, view: str) -> None:
    """What the clicked cell says, in words."""
    query, key = int(point[0]), int(point[1])
    names = DIFFERENCES if view == "difference" else NAMES
    verb = names[int(shown[query, key])]
    two_tokens(tokens.pieces, tokens.n_prefix, query, key, verb)


def two_tokens(pieces: Sequence[str], n_prefix: int, query: int, key: int, verb: str) -> None:
    """``Token 3, Paris (prefix): looks at token 0, The (prefix).``"""

    def named(word: str, number: int) -> html.Html:
        part = "prefix" if number < n_prefix else "continuation"
        text = widgets.code_text(fmt.clip(pieces[number], 60))
        return html.join(html.el("b", f"{word} {number}, "), text, f" ({part})")

    html.show(html.div("b", named("Token", query), f": {verb} ", named("token", key), "."))
