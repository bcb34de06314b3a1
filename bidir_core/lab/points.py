"""What the points of a sweep are: a regime, an edit if any, and the prompt condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from bidir_core.lab.config import LabConfig
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime, parse_regime

SINK = parse_regime("bidirectional:sink=1")


class Condition(NamedTuple):
    """How the prompt is made. Points compare within one condition only: others have other tokens."""

    bos: str = "auto"
    chat_template: bool = False
    context: str = "full"

    def words(self, usual: Condition) -> str:
        """What differs from the sweep's own condition, e.g. ``BOS added, chat template``."""
        said = []
        if self.bos != usual.bos:
            said.append({"add": "BOS added", "none": "no BOS", "auto": "usual BOS"}[self.bos])
        if self.chat_template != usual.chat_template:
            said.append("chat template" if self.chat_template else "no chat template")
        if self.context != usual.context:
            said.append("no context" if self.context == "none" else f"{self.context} context")
        return ", ".join(said)


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
        if self.condition.bos != usual.bos:
            parts.append(f"bos-{self.condition.bos}")
        if self.condition.chat_template != usual.chat_template:
            parts.append("chat" if self.condition.chat_template else "no-chat")
        if self.condition.context != usual.context:
            parts.append(f"context-{self.condition.context}")
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
    return Condition(config.bos, config.chat_template, config.context)


def lay_out(
    usual: Condition, regimes: Iterable[Regime], controls: Iterable[Point] = ()
) -> list[Point]:
    """Every point once, in the order they run: references, the sweep, the controls."""
    points = [Point(str(regime), usual, part="reference") for regime in (CAUSAL, BIDIRECTIONAL)]
    points += [Point(str(regime), usual) for regime in regimes]
    points += [replace(point, part="control") for point in controls]
    found: dict[Any, Point] = {}
    for point in points:
        found.setdefault(point.key, point)
    return list(found.values())
