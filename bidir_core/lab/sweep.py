"""What a sweep's text means: ``sink=0,1*lambda=0.01,1|layers=windows:5`` as a list of regimes.

    sweep   = product { "|" product }     one after the other
    product = axis { "*" axis }           every combination
    axis    = dial "=" value { "," value }

A value is written as in a regime. ``layers`` also takes ``windows:5`` (every window of five
layers), ``windows:1,5,10`` (of each of these widths), ``prefixes`` (0-0, 0-1, ..) and
``suffixes`` (.., 28-29, 29-29).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bidir_core.errors import UserError
from bidir_core.regimes import DIALS, Regime, parse_regime

MOST_POINTS = 1000
_LAYER_WORDS = "A-B, windows:W, prefixes or suffixes"


@dataclass(frozen=True)
class Axis:
    """One dial and its values, as written; ``windows:W`` and the like wait for the model."""

    dial: str
    values: tuple[str, ...]

    def settings(self, n_layers: int) -> list[str]:
        """``dial=value`` for each value; ``''`` where a layer range covers the whole model."""
        whole = f"0-{n_layers - 1}"
        written = [part for value in self.values for part in _ranges(value, n_layers)]
        return ["" if self.dial == "layers" and v == whole else f"{self.dial}={v}" for v in written]


Product = tuple[Axis, ...]


@dataclass(frozen=True)
class Sweep:
    """A parsed sweep; :meth:`regimes` needs to know how many layers the model has."""

    text: str
    products: tuple[Product, ...]

    def regimes(self, n_layers: int) -> list[Regime]:
        """Its points in order, each once. UserError for layers that the model lacks."""
        found: dict[Regime, None] = {}
        for product in self.products:
            for settings in itertools.product(*(axis.settings(n_layers) for axis in product)):
                dials = ",".join(filter(None, settings))
                regime = parse_regime("bidirectional" + (f":{dials}" if dials else ""))
                regime.check_layers(n_layers)
                found[regime] = None
            if len(found) > MOST_POINTS:
                raise UserError(
                    f"--sweep {self.text}: more than {MOST_POINTS} points; sweep fewer values"
                )
        return list(found)


def expand(sweeps: Iterable[Sweep], n_layers: int) -> list[Regime]:
    """The points of several sweeps, each regime once."""
    return list(dict.fromkeys(r for sweep in sweeps for r in sweep.regimes(n_layers)))


def parse_sweep(text: str) -> Sweep:
    """Parse a sweep. Raises UserError saying which part is wrong and what would be right."""
    products = tuple(
        tuple(_axis(text, axis) for axis in product.split("*")) for product in text.split("|")
    )
    for product in products:
        dials = [axis.dial for axis in product]
        if twice := next((dial for dial in dials if dials.count(dial) > 1), None):
            raise UserError(f"--sweep {text}: '{twice}' is given twice in one product")
    return Sweep(text, products)


def _axis(text: str, written: str) -> Axis:
    dial, equals, values = written.strip().partition("=")
    if dial not in DIALS or not equals or not values:
        raise UserError(
            f"--sweep {text}: '{written}' is not a dial with its values; write for example "
            f"'sink=0,1,2'; dials are {', '.join(DIALS)}"
        )
    parts = [part.strip() for part in values.split(",")]
    if dial == "layers":
        return Axis(dial, tuple(_layer_values(text, parts)))
    for part in parts:
        try:
            parse_regime(f"bidirectional:{dial}={part}")
        except UserError as error:
            raise UserError(f"--sweep {text}: {str(error).partition(': ')[2]}") from None
    return Axis(dial, tuple(parts))


def _layer_values(text: str, parts: Sequence[str]) -> list[str]:
    """Ranges as they are; ``windows:1``, ``5``, ``10`` as three families of windows."""
    found, in_windows = [], False
    for part in parts:
        bare = re.fullmatch(r"[0-9]{1,4}", part) is not None
        if bare and in_windows:
            part = f"windows:{part}"
        in_windows = re.fullmatch(r"windows:[0-9]{1,4}", part) is not None
        if in_windows and int(part.partition(":")[2]) < 1:
            raise UserError(f"--sweep {text}: a window has at least one layer, not 0")
        if not in_windows and part not in ("prefixes", "suffixes"):
            if bare:
                raise UserError(f"--sweep {text}: one layer is written {part}-{part}")
            try:
                parse_regime(f"bidirectional:layers={part}")
            except UserError:
                raise UserError(
                    f"--sweep {text}: layers takes {_LAYER_WORDS}, not '{part}'"
                ) from None
        found.append(part)
    return found


def _ranges(value: str, n_layers: int) -> list[str]:
    last = n_layers - 1
    if value == "prefixes":
        return [f"0-{end}" for end in range(n_layers)]
    if value == "suffixes":
        return [f"{start}-{last}" for start in range(n_layers)]
    word, colon, width = value.partition(":")
    if word != "windows" or not colon:
        return [value]
    if int(width) > n_layers:
        raise UserError(
            f"a window of {width} layers does not fit; this model has {n_layers} layers"
        )
    return [f"{start}-{start + int(width) - 1}" for start in range(n_layers - int(width) + 1)]
