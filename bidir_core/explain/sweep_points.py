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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from bidir_core.common.errors import UserError
from bidir_core.common.settings import setting
from bidir_core.evaluate.config import EvalConfig
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, DIALS, Regime, parse_regime

MOST_POINTS = 1000
ATTENTION_FILE = "attention.json"  # in the sweep's folder: what the triviality control looks at
_LAYER_WORDS = "A-B, A-, windows:W, prefixes or suffixes"

Axis = tuple[str, tuple[str, ...]]  # a dial and its values; ``windows:W`` waits for the model
Sweep = tuple[tuple[Axis, ...], ...]  # products of axes


def expand(texts: Iterable[str], n_layers: int) -> list[Regime]:
    """The points of several sweeps in order, each regime once. UserError for a wrong sweep, and for
    layers that the model lacks."""
    regimes: dict[Regime, None] = {}
    for text in texts:
        for product in parse_sweep(text):
            for settings in itertools.product(*(_settings(axis, n_layers) for axis in product)):
                dials = ",".join(filter(None, settings))
                regime = parse_regime("bidirectional" + (f":{dials}" if dials else ""))
                regime.check_layers(n_layers)
                regimes[regime] = None
            if len(regimes) > MOST_POINTS:
                raise UserError(
                    f"--sweep {text}: with it there are more than {MOST_POINTS} points; sweep fewer values"
                )
    return list(regimes)


def _settings(axis: Axis, n_layers: int) -> list[str]:
    """``dial=value`` for each value; ``''`` where a layer range covers the whole model."""
    dial, values = axis
    full = f"0-{n_layers - 1}"
    written = [part for value in values for part in _ranges(value, n_layers)]
    return ["" if dial == "layers" and v == full else f"{dial}={v}" for v in written]


def parse_sweep(text: str) -> Sweep:
    """Parse a sweep. Raises UserError saying which part is wrong and what would be right."""
    products = tuple(
        tuple(_axis(text, axis) for axis in product.split("*")) for product in text.split("|")
    )
    for product in products:
        dials = [dial for dial, _ in product]
        if twice := next((dial for dial in dials if dials.count(dial) > 1), None):
            raise UserError(f"--sweep {text}: '{twice}' is given twice in one product")
    return products


def _axis(text: str, written: str) -> Axis:
    dial, equals, values = written.strip().partition("=")
    if dial not in DIALS or not equals or not values:
        raise UserError(
            f"--sweep {text}: '{written}' is not a dial with its values; write for example "
            f"'sink=0,1,2'; dials are {', '.join(DIALS)}"
        )
    parts = [part.strip() for part in values.split(",")]
    if dial == "layers":
        return dial, tuple(_layer_values(text, parts))
    for part in parts:
        try:
            parse_regime(f"bidirectional:{dial}={part}")
        except UserError as error:
            raise UserError(f"--sweep {text}: {str(error).partition(': ')[2]}") from None
    return dial, tuple(parts)


def _layer_values(text: str, parts: Sequence[str]) -> list[str]:
    """Ranges as they are; ``windows:1``, ``5``, ``10`` as three families of windows."""
    written, in_windows = [], False
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
        written.append(part)
    return written


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


# Ready-made sweeps, for any model.

LAW_LAYERS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24)
"""Every A of ``layers=A-`` that ``--preset law`` asks for, below the model's last layer."""

ORDER_PRESET_TASKS = (
    "sciq_first",
    "sciq_last",
    "sciq_letters_first",
    "sciq_letters_last",
    "boolq_first",
    "boolq_last",
)
"""What ``--preset order`` asks unless tasks are named: the short families, both orders."""


def preset_sweep(preset: str | None, n_layers: int, opened: str) -> list[Regime]:
    """The regimes of a preset, causal and bidirectional aside.

    ``opened``: the regime that unlabelled prompts predict, which ``order`` asks beside ``sink=1``.
    """
    if preset == "law":
        first = [f"{layer}-" for layer in LAW_LAYERS if layer < n_layers - 1]
        return expand((f"layers={','.join([*first, '0-0'])}", "sink=1,4"), n_layers)
    return [SINK, parse_regime(opened)] if preset == "order" else []


def preset_points(preset: str | None, usual: Condition) -> list[Point]:
    """A preset's points with another prompt: for ``order`` causal with the prompt given twice,
    which is what any gain has to beat or match."""
    if preset != "order":
        return []
    return [Point(str(CAUSAL), usual._replace(repeat_prompt=2 * usual.repeat_prompt))]


# A lab's settings: those of an evaluation, and what is varied.


@dataclass(frozen=True, kw_only=True)
class LabConfig(EvalConfig):
    """Which regimes to run on one model and one set of items. Everything else is as in eval."""

    regime: str = setting("causal", help="the baseline", cli=False)
    sweep: tuple[str, ...] = setting((), help="what to vary", cli=False)
    preset: str | None = setting(
        None,
        help="a ready-made sweep: law (from which layer on may the prompt look ahead: layers=A- for "
        "every A, sink=1 and 4) or order (does it matter where the passage stands: sink=1, the "
        "recommended layers=A- and the prompt given twice, on the order tasks unless others are "
        "named). First it stores what unlabelled prompts predict (see recommend)",
        choices=("law", "order"),
    )
    controls: bool = setting(
        False,
        help="add the controls that could refute the story: sufficiency, placebo, relocated sink, "
        "key or value, random look-ahead, clipped norm, triviality, prompt conditions, last prompt "
        "token, context floor",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.sweep:
            parse_sweep(text)
        if not self.sweep and not self.controls and not self.preset:
            raise UserError(
                "say what to vary: --sweep sink=0,1,2 (see --help for more), --preset law, --preset "
                "order, or --controls"
            )

    def evaluation(self, **changes: Any) -> EvalConfig:
        """The settings of one evaluation with these changes."""
        settings = {spec.name: getattr(self, spec.name) for spec in fields(EvalConfig)}
        return EvalConfig(**{**settings, **changes})


# What the points of a sweep are: a regime, an edit if any, and the prompt condition.

SINK = parse_regime("bidirectional:sink=1")


def open_from(first: int) -> Regime:
    """Bidirectional from this layer to the model's last."""
    return parse_regime(f"bidirectional:layers={first}-")


def predicted_regime(prediction: Mapping[str, Any]) -> str:
    """The regime that a recommendation's ``metrics.json`` predicts by the share of the KL that is
    left; where that is not stated, by the KL itself.

    The threshold in nats asks for nearly causal models, which leaves little to look ahead with.
    """
    predictions = prediction["predictions"]
    first = predictions["kl"] if predictions["share"] is None else predictions["share"]
    return str(open_from(min(first, prediction["n_layers"] - 1)))


class Condition(NamedTuple):
    """How the prompt is made. Points compare within one condition only: others have other tokens."""

    bos: str = "auto"
    chat_template: bool = False
    context: str = "full"
    repeat_prompt: int = 1

    def differences(self, usual: Condition) -> list[tuple[str, str]]:
        """What differs from the sweep's own condition: in a folder's name, and in words."""
        bos = {"add": "BOS added", "none": "no BOS", "auto": "usual BOS"}[self.bos]
        chat = ("chat", "chat template") if self.chat_template else ("no-chat", "no chat template")
        context = "no context" if self.context == "none" else f"{self.context} context"
        n = self.repeat_prompt
        named = (
            (f"bos-{self.bos}", bos),
            chat,
            (f"context-{self.context}", context),
            (f"prompt-x{n}", f"prompt {n} times"),
        )
        return [name for name, a, b in zip(named, self, usual, strict=True) if a != b]

    def words(self, usual: Condition) -> str:
        """What differs, e.g. ``BOS added, chat template``."""
        return ", ".join(words for _, words in self.differences(usual))


@dataclass(frozen=True)
class Point:
    """One evaluation of a sweep. ``patch`` names an edit beside the regime (see patching).

    ``part``: what it is there for: ``reference``, ``sweep`` or ``control``.
    """

    regime: str
    condition: Condition
    patch: str | None = None
    part: str = "sweep"

    @property
    def key(self) -> tuple[str, Condition, str | None]:
        return self.regime, self.condition, self.patch

    def slug(self, usual: Condition) -> str:
        """The name of its folder, unique in the sweep."""
        parts = [parse_regime(self.regime).slug]
        if self.patch:
            parts.append(f"patch-{self.patch.replace('=', '-')}")
        parts += [slug for slug, _ in self.condition.differences(usual)]
        return "_".join(parts)

    def to_json(self, usual: Condition) -> dict[str, Any]:
        return {"slug": self.slug(usual), **asdict(self), "condition": self.condition._asdict()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        return cls(
            regime=value["regime"],
            condition=Condition(**value["condition"]),
            patch=value.get("patch"),
            part=value.get("part", "sweep"),
        )


def condition_of(config: LabConfig) -> Condition:
    return Condition(config.bos, config.chat_template, config.context, config.repeat_prompt)


def lay_out(
    usual: Condition,
    regimes: Iterable[Regime],
    controls: Iterable[Point] = (),
    others: Iterable[Point] = (),
) -> list[Point]:
    """Every point once, in the order they run: references, the sweep, ``others``, the controls."""
    points = [Point(str(regime), usual, part="reference") for regime in (CAUSAL, BIDIRECTIONAL)]
    points += [Point(str(regime), usual) for regime in regimes]
    points += others
    points += [replace(point, part="control") for point in controls]
    unique: dict[Any, Point] = {}
    for point in points:
        unique.setdefault(point.key, point)
    return list(unique.values())


RANDOM = "random=0"  # as many pairs ahead as the regime beside it, at random
CLIP = "clip=0"  # the first token's norm clipped, its causal keys kept


def patch_words(patch: str | None) -> str:
    """An edit beside a regime, in a few words; empty for none."""
    edit, _, number = (patch or "").partition("=")
    token = "the first token" if number == "0" else f"token {number}"
    return {
        "": "",
        "random": "as much ahead at random",
        "clip": f"norm of {token} clipped",
        "both": f"keys and values of {token} patched",
    }.get(edit, f"{edit} of {token} patched")


def control_points(
    usual: Condition, middle: int, conditions: Iterable[Condition], n_layers: int
) -> list[Point]:
    """The points that the controls need; ``middle``: the placebo's token.

    ``conditions``: other ways to make the prompt, as far as the model allows them.
    """
    regimes = (
        str(SINK),
        "bidirectional:rows=0-0",
        f"bidirectional:skip={middle}",
        f"bidirectional:self={middle}",
        "bidirectional:tail=1",
    )
    points = [Point(regime, usual) for regime in regimes]
    points += [Point(str(BIDIRECTIONAL), usual, patch) for patch in ("keys=0", "values=0")]
    opened = f"bidirectional:layers={min(2, n_layers - 1)}-"
    points += [Point(r, usual, RANDOM) for r in (str(SINK), opened, "bidirectional:rows=0-0")]
    points.append(Point(str(CAUSAL), usual, CLIP))
    references = (str(CAUSAL), str(BIDIRECTIONAL), str(SINK))
    points += [Point(regime, condition) for condition in conditions for regime in references]
    if usual.context == "full":
        points.append(Point(str(CAUSAL), usual._replace(context="none")))
    return points


def planned_points(config: LabConfig, n_layers: int | None) -> list[Point] | None:
    """The points that a sweep would run, at most, told before the model is loaded.

    Controls with a BOS token or a chat template fall away for a model that has none. None if the
    number of layers is needed and not known. UserError for layers the model does not have.
    """
    if n_layers is None:
        # Families of layers make as many points as there are layers.
        families = ("windows:", "prefixes", "suffixes")
        if config.preset == "law" or any(
            word in text for text in config.sweep for word in families
        ):
            return None
        n_layers = _ANY_LAYERS
    usual, controls = condition_of(config), []
    if config.controls:
        conditions = (
            usual._replace(bos="add"),
            usual._replace(chat_template=not usual.chat_template),
        )
        controls = control_points(usual, 2, conditions, n_layers)
    swept = preset_sweep(config.preset, n_layers, OPENED) + expand(config.sweep, n_layers)
    return lay_out(usual, swept, controls, preset_points(config.preset, usual))


OPENED = "bidirectional:layers=1-"  # stands for the regime that is not recommended yet
_ANY_LAYERS = 10_000  # of a model whose number of layers does not matter
