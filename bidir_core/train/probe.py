"""Is the regime really in force in training? Asked of a real packed batch, in training mode.

A mask that is dropped in training only would make a fine-tune silently causal: it would repair
little and damage the causal mode, and nothing in its loss would show it. So before the first step,
and again on every resume, one token of a real batch is changed and the last hidden states are
compared:

- tokens of the prompt that look ahead at it must move, and only tokens that the regime lets it
  reach may move: under 3B position 0 moves, under 3C nothing before the changed token does;
- no other sample moves, not even one in the same row;
- a token that the regime hides moves nobody but itself (and whom layers reach that do not hide it),
  and seeing it after all would make a difference;
- unless the objective is leaky, a changed response token moves nothing before itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.layout import Layout
from bidir_core.regimes import Regime, visibility
from bidir_core.train.packing import TrainBatch
from bidir_core.train.student import Student, same_luck, within


@dataclass(frozen=True)
class Check:
    """One question asked of the batch, and what came of it."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class TrainingProbe:
    """All checks on one batch."""

    regime: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """For ``probe.json``."""
        return {"schema": 1, "kind": "training", **asdict(self), "passed": self.passed}

    def require(self) -> None:
        """Raise UserError, naming the failed checks, unless all passed."""
        failed = [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]
        if failed:
            raise UserError(
                f"the training probe failed, '{self.regime}' is not what this model is trained "
                f"under ({'; '.join(failed)}); nothing was trained"
            )


@dataclass(frozen=True)
class _Item:
    """A sample of the batch: its row, where it begins there, and its lengths."""

    row: int
    begin: int
    n_prefix: int
    n_total: int

    def at(self, position: int) -> tuple[int, int]:
        return self.row, self.begin + position


def run_training_probe(
    student: Student, batch: TrainBatch, regime: Regime, *, leaky: bool
) -> TrainingProbe:
    """Probe the student as it is about to be trained. ``batch`` is on the model's device."""
    n_layers = student.model.config.get_text_config().num_hidden_layers
    item, changed = _choose(batch, regime, n_layers, _window(student))
    all_rows = batch
    batch, item = _row_of(batch, item)
    still = _run(student, batch, batch.ids, regime)
    noise = float((_run(student, batch, batch.ids, regime) - still).abs().max())
    threshold = 8 * noise

    def moved(position: int) -> torch.Tensor:
        ids = batch.ids.clone()
        place = item.at(position)
        other = batch.ids[batch.ids != ids[place]]
        ids[place] = other[len(other) // 2]
        difference = (_run(student, batch, ids, regime) - still).abs().amax(-1)
        return (difference > threshold) | difference.isnan()

    hit = moved(changed)
    row = hit[item.row].cpu().numpy()
    own = row[item.begin : item.begin + item.n_total]
    sees, reach = _expected(item, changed, regime, n_layers, _window(student))
    before = np.arange(item.n_total) < changed
    must, may = sees & before, reach | (np.arange(item.n_total) == changed)
    n_moved = int((own & before).sum())
    checks = [
        Check(
            "looks ahead" if must.any() else "stays causal",
            bool(own[must].all() if regime.lam == 1 else own[must].any() or not must.any())
            and not bool((own & ~may).any()),
            f"prompt token {changed} of {item.n_prefix} was changed: {n_moved} earlier positions "
            f"moved, {int(must.sum())} must, {int((may & before).sum())} may",
        ),
        Check(
            "samples apart",
            int(hit.sum()) == int(own.sum()),
            f"{int(hit.sum()) - int(own.sum())} positions of other samples moved",
        ),
    ]
    if not leaky and item.n_total - item.n_prefix > 1:
        target = item.n_total - 2 if item.n_total - item.n_prefix > 2 else item.n_prefix
        earlier = moved(target)[item.row, item.begin : item.begin + target]
        checks.append(
            Check(
                "no leak",
                not bool(earlier.any()),
                f"response token {target} was changed: {int(earlier.sum())} earlier positions moved",
            )
        )
    if regime.hide is not None:
        checks.append(_check_hidden(student, all_rows, regime, n_layers))
    return TrainingProbe(str(regime), tuple(checks))


def _check_hidden(student: Student, batch: TrainBatch, regime: Regime, n_layers: int) -> Check:
    """Whether the hidden token is hidden, in the shortest sample that has it in its prompt."""
    name, token = "hides the token", regime.hide
    item = next(
        (one for one in _items(batch) if token is not None and token < one.n_prefix - 1), None
    )
    if item is None or token is None:
        return Check(name, True, f"no prompt of the first batch has a token {token} to hide")
    batch, item = _row_of(batch, item)
    still = _run(student, batch, batch.ids, regime)
    threshold = 8 * float((_run(student, batch, batch.ids, regime) - still).abs().max())

    def moved(ids: torch.Tensor, under: Regime) -> np.ndarray:
        difference = (_run(student, batch, ids, under) - still).abs().amax(-1)
        hit = (difference > threshold) | difference.isnan()
        return hit[item.row, item.begin : item.begin + item.n_total].cpu().numpy()

    ids, place = batch.ids.clone(), item.at(token)
    other = batch.ids[batch.ids != ids[place]]
    ids[place] = other[len(other) // 2]
    _, reach = _expected(item, token, regime, n_layers, None)
    astray = int((moved(ids, regime) & ~reach).sum())
    shown = int(moved(batch.ids, replace(regime, hide=None)).sum())
    return Check(
        name,
        astray == 0 and shown > 0,
        f"prompt token {token} was changed: {astray} positions moved that it must not reach; "
        f"seeing it would move {shown}",
    )


def _run(student: Student, batch: TrainBatch, ids: torch.Tensor, regime: Regime) -> torch.Tensor:
    """Last hidden states, float32, the way a training step computes them (gradients included)."""
    with same_luck(batch.ids.device), student.handle.use(regime, batch.layout):
        other = batch._replace(ids=ids)
        return within(student.model, lambda: student.everywhere(other)).detach().float()


def _choose(
    batch: TrainBatch, regime: Regime, n_layers: int, window: int | None
) -> tuple[_Item, int]:
    """The shortest sample in which the regime shows, and the prompt token to change.

    It is the last one that something looks ahead at (the prompt's last, unless ``tail`` or another
    dial says otherwise), and simply the prompt's last under ``causal``.
    """
    items = _items(batch)
    for item in items:
        if item.n_prefix < 2:
            continue
        if not regime.bidirectional:
            return item, item.n_prefix - 1
        for token in range(item.n_prefix - 1, 0, -1):
            sees, _ = _expected(item, token, regime, n_layers, window)
            if sees[:token].any():
                return item, token
    raise UserError(
        f"under '{regime}' no prompt token of the first batch looks ahead: this would be causal "
        "training; use weaker dials or longer prompts"
        if regime.bidirectional
        else "no prompt of the first batch has two tokens; use longer prompts"
    )


def _row_of(batch: TrainBatch, item: _Item) -> tuple[TrainBatch, _Item]:
    """The batch's one row that holds the item: enough to show everything, and cheap."""
    here, layout = slice(item.row, item.row + 1), batch.layout
    only = Layout(
        layout.item[here], layout.position[here], layout.n_prefix[here], layout.exit[here]
    )
    return batch._replace(ids=batch.ids[here], layout=only), replace(item, row=0)


def _items(batch: TrainBatch) -> list[_Item]:
    item = batch.layout.item.cpu().numpy()
    n_prefix = batch.layout.n_prefix.cpu().numpy()
    found = []
    for row in range(len(item)):
        for value in np.unique(item[row][item[row] >= 0]):
            places = np.flatnonzero(item[row] == value)
            begin = int(places[0])
            found.append(_Item(row, begin, int(n_prefix[row, begin]), len(places)))
    return sorted(found, key=lambda one: (one.n_total, one.row, one.begin))


def _expected(
    item: _Item, token: int, regime: Regime, n_layers: int, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Who sees ``token`` in some layer within the window, and whom its change can reach at all."""
    sees = np.zeros(item.n_total, dtype=bool)
    reach = np.zeros(item.n_total, dtype=bool)
    reach[token] = True
    for layer in range(n_layers):
        allowed = visibility(regime, item.n_prefix, item.n_total, layer=layer)
        near = visibility(regime, item.n_prefix, item.n_total, layer=layer, window=window)
        sees |= near[:, token]
        reach |= allowed[:, reach].any(axis=1)
    return sees, reach


def _window(student: Student) -> int | None:
    return getattr(student.model.config.get_text_config(), "sliding_window", None)
