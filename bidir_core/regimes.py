"""Who sees whom: parse and print a regime, and one pure visibility function.

A *regime* decides which tokens attend to which. In every regime a continuation token sees the
whole prefix and the continuation up to itself; what differs is whether a prefix token may also
look *ahead*, at later prefix tokens:

    causal             bidirectional        bidirectional:sink=1
    k: P P P | C C     k: P P P | C C       k: P P P | C C
    P  x . . | . .     P  x x x | . .       P  x . . | . .     <- the first token stays causal
    P  x x . | . .     P  x x x | . .       P  x x x | . .
    P  x x x | . .     P  x x x | . .       P  x x x | . .
    C  x x x | x .     C  x x x | x .       C  x x x | x .
    C  x x x | x x     C  x x x | x x       C  x x x | x x

Everything that needs a mask (scoring, training, the probe, plots, tests) asks this module. It
holds no torch: the functions use only comparison and logical operators, so they work alike on
numpy arrays and torch tensors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

import numpy as np

from bidir_core.common.errors import UserError

DIALS = ("sink", "rows", "skip", "self", "hide", "tail", "layers", "lambda")
CAUSAL_DIALS = ("hide", "layers")  # the dials that causal takes
LARGEST = 999_999_999  # the largest value of a dial; no prompt is as long
_EXAMPLE = "write for example 'causal', 'bidirectional' or 'bidirectional:sink=1,layers=10-29'"


@dataclass(frozen=True)
class Regime:
    """A parsed regime. Build it with :func:`parse_regime`; ``str(regime)`` prints it canonically.

    ``sink``: the first ``sink`` prefix tokens stay causal. ``rows``: only prefix queries at these
    positions (inclusive) look ahead. ``skip``: this prefix token stays causal, whichever others
    look ahead (so ``skip=0`` is ``sink=1``). ``self_token``: this prefix token sees only itself.
    ``hide``: no other token sees this prefix token, which itself sees what it would see anyway.
    ``tail``: the last ``tail`` prefix tokens stay on the causal side. ``layers``: the regime holds
    in these layers (inclusive; the last one None for the model's last) and the others are plainly
    causal. ``lam``: look-ahead scores get ``log(lam)`` added, so 1 is full strength.

    Where nothing looks ahead (``bidirectional`` False) only ``hide`` is left, with its ``layers``.
    """

    bidirectional: bool = False
    sink: int = 0
    rows: tuple[int, int] | None = None
    self_token: int | None = None
    tail: int = 0
    layers: tuple[int, int | None] | None = None
    lam: float = 1.0
    skip: int | None = None
    hide: int | None = None

    def __post_init__(self) -> None:
        """Equal regimes compare equal however they were built: what changes nothing drops out."""
        spans = [span for span in (self.rows, self.layers) if span is not None]
        counts = [self.sink, self.skip or 0, self.self_token or 0, self.hide or 0, self.tail]
        counts += [span[0] for span in spans]
        backwards = any(last is not None and first > last for first, last in spans)
        if not 0 <= self.lam <= 1 or min(counts) < 0 or backwards:
            raise ValueError(f"not a regime: {self!r}")
        if not self.bidirectional or self.lam == 0:
            kept = () if self.hide is None else CAUSAL_DIALS
            for dial in fields(self):
                if dial.name not in kept:
                    object.__setattr__(self, dial.name, dial.default)
        if self.layers == (0, None):
            object.__setattr__(self, "layers", None)
        if self.skip is not None and self.skip <= self.sink:  # held back by ``sink`` as well
            object.__setattr__(self, "sink", min(max(self.sink, self.skip + 1), LARGEST))
            object.__setattr__(self, "skip", None)

    def __str__(self) -> str:
        rows, layers = (
            span and f"{span[0]}-{'' if span[1] is None else span[1]}"
            for span in (self.rows, self.layers)
        )
        values = {
            "sink": self.sink or None,
            "rows": rows,
            "skip": self.skip,
            "self": self.self_token,
            "hide": self.hide,
            "tail": self.tail or None,
            "layers": layers,
            # as 0.00001, not 1e-05
            "lambda": None if self.lam == 1 else format(Decimal(repr(self.lam)), "f"),
        }
        dials = [f"{dial}={value}" for dial, value in values.items() if value is not None]
        base = "bidirectional" if self.bidirectional else "causal"
        return base + (":" + ",".join(dials) if dials else "")

    @property
    def slug(self) -> str:
        """A folder name that is unique to this regime, e.g. ``bidirectional_sink-1_layers-0-4``."""
        return str(self).replace(":", "_").replace(",", "_").replace("=", "-")

    @property
    def is_causal(self) -> bool:
        """Whether this is plain ``causal``, the baseline. ``causal:hide=0`` is not: it is an
        ablation. Whether anything looks ahead is another question: ``bidirectional``."""
        return self == CAUSAL

    def at_layer(self, layer: int) -> Regime:
        """The regime in force in one layer (0-based), without the ``layers`` dial."""
        if self.layers is None:
            return self
        first, last = self.layers
        if layer < first or (last is not None and layer > last):
            return CAUSAL
        return replace(self, layers=None)

    def check_layers(self, n_layers: int) -> None:
        """Raise UserError if the ``layers`` dial names a layer that the model does not have."""
        if self.layers is None:
            return
        first, last = self.layers
        furthest = first if last is None else last
        if furthest >= n_layers:
            raise UserError(
                f"regime '{self}': layer {furthest} does not exist; "
                f"this model has layers 0-{n_layers - 1}"
            )


CAUSAL = Regime()
BIDIRECTIONAL = Regime(bidirectional=True)


def parse_regime(text: str | Regime) -> Regime:
    """Parse a regime string such as ``bidirectional:sink=1,lambda=0.03``.

    Dials that change nothing drop out (``sink=0``, ``tail=0``, ``layers=0-``, ``lambda=1``), and
    ``lambda=0`` is causal, since nothing looks ahead at strength 0; of the other dials it leaves
    ``hide``, with its ``layers``. Raises UserError for anything that is not a regime.
    """
    if isinstance(text, Regime):
        return text
    base, colon, dials = text.partition(":")
    if base not in ("causal", "bidirectional") or (colon and not dials):
        raise UserError(f"unknown regime '{text}'; {_EXAMPLE}")
    values: dict[str, str] = {}
    for part in dials.split(",") if dials else []:
        name, equals, value = part.partition("=")
        if name not in DIALS or not equals:
            raise UserError(
                f"regime '{text}': '{part}' is not a dial; dials are {', '.join(DIALS)}"
            )
        if name in values:
            raise UserError(f"regime '{text}': the dial '{name}' is given twice; give it once")
        values[name] = value
    if base == "causal" and values and ("hide" not in values or not set(values) <= {*CAUSAL_DIALS}):
        raise UserError(
            f"regime '{text}': of the dials causal takes only 'hide', with its layers, as in "
            "causal:hide=0; the others go with 'bidirectional', as in bidirectional:sink=1"
        )
    return Regime(
        bidirectional=base == "bidirectional",
        sink=_integer(text, "sink", values.get("sink", "0")),
        rows=_span(text, "rows", values.get("rows")),
        skip=_integer(text, "skip", values["skip"]) if "skip" in values else None,
        self_token=_integer(text, "self", values["self"]) if "self" in values else None,
        tail=_integer(text, "tail", values.get("tail", "0")),
        layers=_layers(text, values.get("layers")),
        hide=_integer(text, "hide", values["hide"]) if "hide" in values else None,
        lam=_fraction(text, values.get("lambda", "1")),
    )


def parse_regimes(text: str) -> tuple[Regime, ...]:
    """Parse one regime, or several with commas between them: ``causal,bidirectional:sink=1,tail=2``.

    A comma stands between regimes where the name of one follows, else between dials. Raises
    UserError for what is not a regime, and for one that is given twice.
    """
    regimes = [parse_regime(part) for part in re.split(",(?=causal|bidirectional)", text)]
    for index, regime in enumerate(regimes):
        if regime in regimes[:index]:
            raise UserError(f"the regime '{regime}' is given twice; give it once")
    return tuple(regimes)


def _integer(text: str, dial: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise UserError(
            f"regime '{text}': {dial} takes an integer from 0 to {LARGEST}, not '{value}'"
        )
    return int(value)


def _span(text: str, dial: str, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", value)
    if not match:
        raise UserError(f"regime '{text}': {dial} takes A-B (0-based, inclusive), not '{value}'")
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise UserError(f"regime '{text}': {dial}={value} runs backwards; write {last}-{first}")
    return first, last


def _layers(text: str, value: str | None) -> tuple[int, int | None] | None:
    """``A-B``, or ``A-`` for all layers from A on."""
    if value is not None and value.endswith("-"):
        return _integer(text, "layers", value[:-1]), None
    return _span(text, "layers", value)


def _fraction(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1 or "_" in value or value != value.strip():
        raise UserError(f"regime '{text}': lambda takes a number from 0 to 1, not '{value}'")
    return number


def in_words(regime: Regime) -> str:
    """What a regime's dials do: ``the first token stays causal``; empty if none is set."""
    first = "the first token stays" if regime.sink == 1 else f"the first {regime.sink} tokens stay"
    said = []
    if regime.sink:
        said.append(f"{first} causal")
    if regime.rows is not None:
        said.append(f"only tokens {regime.rows[0]} to {regime.rows[1]} look ahead")
    if regime.skip is not None:
        said.append(f"token {regime.skip} stays causal")
    if regime.self_token is not None:
        said.append(f"token {regime.self_token} sees only itself")
    if regime.hide is not None:
        said.append(f"no other token sees token {regime.hide}")
    if regime.tail:
        said.append(f"the last {regime.tail} prompt tokens are seen by none before them")
    if regime.layers is not None:
        start, end = regime.layers
        said.append(f"in layers {start} to {'the last' if end is None else end} only")
    if regime.lam < 1:
        said.append(f"look-ahead at strength {regime.lam:g}")
    return "; ".join(said)


def looks_ahead(regime: Regime, query: Any, key: Any, n_prefix: Any) -> Any:
    """Whether the prefix token at position ``query`` sees the *later* prefix token at ``key``.

    Positions count from 0 at the first prefix token; arguments are integers or arrays that
    broadcast, numpy or torch. ``regime`` is a single layer's (see :meth:`Regime.at_layer`).
    """
    ahead = (key > query) & (key < n_prefix - regime.tail) & (query >= regime.sink)
    if regime.rows is not None:
        ahead = ahead & (query >= regime.rows[0]) & (query <= regime.rows[1])
    if regime.skip is not None:
        ahead = ahead & (query != regime.skip)
    return ahead


def visible(
    regime: Regime,
    query: Any,
    key: Any,
    *,
    query_prefix: Any,
    key_prefix: Any,
    same_item: Any,
    descends: Any,
    n_prefix: Any,
) -> tuple[Any, Any]:
    """The visibility rule, for one layer, over broadcastable arrays: ``(allowed, ahead)``.

    ``query``/``key``: positions from the item's first token (in a token trie, the depth).
    ``query_prefix``/``key_prefix``: is the token part of the prefix. ``same_item``: both belong
    to one item. ``descends``: the key is an ancestor of the query or the query itself, that is,
    the causal order of the item's tree of tokens. ``n_prefix``: the item's prefix length.

    ``allowed`` is where attention may flow; ``ahead`` the part of it that looks ahead, whose
    scores get ``log(lambda)`` added.
    """
    allowed = same_item & descends
    ahead = allowed & False
    if regime.bidirectional:
        both = same_item & query_prefix & key_prefix
        ahead = both & looks_ahead(regime, query, key, n_prefix)
        allowed = allowed | ahead
    if regime.self_token is not None:
        only_self = query_prefix & (query == regime.self_token)
        allowed = allowed & (~only_self | (query == key) & descends)
        ahead = ahead & ~only_self
    if regime.hide is not None:
        # Within its item nothing else stands at a prefix token's position.
        hidden = key_prefix & (key == regime.hide) & (query != key)
        allowed, ahead = allowed & ~hidden, ahead & ~hidden
    return allowed, ahead


def visibility(
    regime: Regime,
    n_prefix: int,
    n_total: int,
    *,
    layer: int | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Who sees whom in one sequence: bool ``[query, key]`` of shape ``[n_total, n_total]``.

    The first ``n_prefix`` tokens are the prefix, the rest the continuation. ``layer`` selects
    the layer (None reads the regime as if it held everywhere). ``window`` is a sliding window's
    width: a key is reachable only at distance < ``window``, on both sides.
    """
    if not 0 <= n_prefix <= n_total:
        raise ValueError(f"n_prefix={n_prefix} is not within 0..n_total={n_total}")
    layer_regime = regime.at_layer(layer) if layer is not None else replace(regime, layers=None)
    query, key = np.arange(n_total)[:, None], np.arange(n_total)[None, :]
    allowed, _ = visible(
        layer_regime,
        query,
        key,
        query_prefix=query < n_prefix,
        key_prefix=key < n_prefix,
        same_item=np.ones((n_total, n_total), dtype=bool),
        descends=key <= query,
        n_prefix=n_prefix,
    )
    if window is not None:
        allowed = allowed & (abs(query - key) < window)
    return allowed
