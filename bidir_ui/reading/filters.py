"""The filter of the Flips page: in the URL, applied to a frame, and followed by the Item page."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import pandas as pd

from bidir_ui.kit import url

FLIPPED = ("broken", "fixed")

NAMES = ("task", "flip", "q", "min", "len")


@dataclass(frozen=True)
class FlipFilter:
    """Which items to keep. ``min``: least absolute margin change in nats. ``len``: ``A-B`` prefix
    tokens. Empty fields keep everything."""

    task: tuple[str, ...] = ()
    flip: tuple[str, ...] = ()
    q: str = ""
    min: float = 0.0
    len: str = ""

    @property
    def key(self) -> str:
        """A short hash, for widget keys: a selected row belongs to one filter only."""
        return hashlib.sha1(repr(sorted(asdict(self).items())).encode()).hexdigest()[:12]

    @property
    def params(self) -> dict[str, str]:
        """As URL parameters."""
        values = {
            "task": "~".join(self.task),
            "flip": "~".join(self.flip),
            "q": self.q,
            "min": f"{self.min:g}" if self.min else "",
            "len": self.len,
        }
        return {name: value for name, value in values.items() if value}

    @property
    def span(self) -> tuple[int, int] | None:
        low, dash, high = self.len.partition("-")
        if dash and low.isdecimal() and high.isdecimal():
            return int(low), int(high)
        return None


def from_url() -> FlipFilter:
    """The filter this page's URL asks for."""
    return FlipFilter(
        task=tuple(url.get_list("task")),
        flip=tuple(url.get_list("flip")),
        q=url.get("q"),
        min=url.read_number(url.get("min"), 0.0, 0.0, 1e6),
        len=url.get("len"),
    )


def apply(frame: pd.DataFrame, chosen: FlipFilter, *, skip: str = "") -> pd.DataFrame:
    """The rows the filter keeps; ``skip`` leaves one field out (for counts beside its menu)."""
    keep = pd.Series(True, index=frame.index)
    if chosen.task and skip != "task":
        keep &= frame["task"].isin(chosen.task)
    if chosen.flip and skip != "flip":
        keep &= frame["flip"].isin(chosen.flip)
    if chosen.min and skip != "min":
        keep &= frame["change"].abs() >= chosen.min
    if chosen.span and skip != "len":
        keep &= frame["length"].between(*chosen.span)
    for word in chosen.q.casefold().split() if skip != "q" else ():
        keep &= frame["search"].str.contains(word, regex=False)
    return frame[keep]


@dataclass(frozen=True)
class Neighbours:
    """Where an item stands in the filtered list; ids, or None at the ends."""

    position: int | None
    total: int
    previous: str | None
    next: str | None
    previous_flip: str | None
    next_flip: str | None


def neighbours(frame: pd.DataFrame, item_id: str) -> Neighbours:
    """``frame``: the filtered rows in the order shown. An item outside it starts at the top."""
    ids = frame["item_id"].tolist()
    flipped = frame.loc[frame["flip"].isin(FLIPPED), "item_id"].tolist()
    if item_id not in ids:
        first_flip = next(iter(flipped), None)
        return Neighbours(None, len(ids), None, next(iter(ids), None), None, first_flip)
    here = ids.index(item_id)
    rank = {name: i for i, name in enumerate(ids)}
    return Neighbours(
        position=here,
        total=len(ids),
        previous=ids[here - 1] if here else None,
        next=ids[here + 1] if here + 1 < len(ids) else None,
        previous_flip=next((name for name in reversed(flipped) if rank[name] < here), None),
        next_flip=next((name for name in flipped if rank[name] > here), None),
    )
