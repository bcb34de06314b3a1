"""Is the regime really in force in training? Asked of a real packed batch, in training mode.

A mask that is dropped in training only would make a fine-tune silently causal: it would repair
little and damage the causal mode, and nothing in its loss would show it. So before the first step,
and again on every resume, the model in training is asked:

- in every layer and in every row of the batch, does each token attend to just what the regime says?
  (:func:`bidir_core.models.probe_measure.watch_averages`)
- one prompt token of a sample is changed, in a batch of two rows where there are two: tokens of the
  prompt that look ahead at it must move, and only tokens that the regime lets it reach may move;
  under 3B position 0 moves, under 3C nothing before the changed token does;
- no other sample moves, not even one in the same row;
- unless the objective is leaky, a changed response token moves nothing before itself.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bidir_core.common.errors import UserError
from bidir_core.models.probe import Check
from bidir_core.models.probe_checks import fault_in_averages, layer_windows, why_nan
from bidir_core.models.probe_measure import Placed, Windows, watch_averages
from bidir_core.regimes import Regime, visibility
from bidir_core.train.packing import TrainBatch
from bidir_core.train.student import Student, same_luck, within


@dataclass(frozen=True)
class TrainingProbe:
    regime: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, "kind": "training", **asdict(self), "passed": self.passed}

    def require(self) -> None:
        """Raise UserError, naming the failed checks, unless all passed."""
        failed = [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]
        if failed:
            raise UserError(
                f"the training probe failed, '{self.regime}' is not what this model is trained "
                f"under ({'; '.join(failed)}); nothing was trained"
            )


def run_training_probe(
    student: Student, batch: TrainBatch, regime: Regime, *, leaky: bool
) -> TrainingProbe:
    """Probe the student as it is about to be trained. ``batch`` is on the model's device.

    Raises UserError for a batch that shows nothing of the regime, and for a model of which no mask
    can be asked anything, naming the cause.
    """
    text = student.model.config.get_text_config()
    windows = layer_windows(text, text.num_hidden_layers)
    item, changed = _choose(batch, regime, windows)
    checks = [_check_layers(student, batch, regime, windows)]
    batch, item = _two_rows(batch, item)
    unchanged = _run(student, batch, batch.ids, regime)
    threshold = 8 * (_run(student, batch, batch.ids, regime) - unchanged).abs().max()

    def moved(position: int) -> torch.Tensor:
        ids = batch.ids.clone()
        place = item.row, item.begin + position
        other_ids = batch.ids[batch.ids != ids[place]]
        ids[place] = other_ids[len(other_ids) // 2]
        difference = (_run(student, batch, ids, regime) - unchanged).abs().amax(-1)
        return (difference > threshold) | difference.isnan()

    all_moved = moved(changed)
    item_moved = all_moved[item.row, item.begin : item.begin + item.n_total].cpu().numpy()
    sees, may = _expected(item, changed, regime, windows)
    before = np.arange(item.n_total) < changed
    must = sees & before
    n_moved = int((item_moved & before).sum())
    # At a lower strength than 1 a change may be lost in rounding: one position that moves will do.
    enough = item_moved[must].all() if regime.lam == 1 else item_moved[must].any() or not must.any()
    checks += [
        Check(
            "looks ahead" if must.any() else "stays causal",
            bool(enough) and not bool((item_moved & ~may).any()),
            f"prompt token {changed} of {item.n_prefix} was changed: {n_moved} earlier positions "
            f"moved, {int(must.sum())} must, {int((may & before).sum())} may",
        ),
        Check(
            "samples apart",
            int(all_moved.sum()) == int(item_moved.sum()),
            f"{int(all_moved.sum()) - int(item_moved.sum())} positions of other samples moved",
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
    return TrainingProbe(str(regime), tuple(checks))


def _check_layers(student: Student, batch: TrainBatch, regime: Regime, windows: Windows) -> Check:
    """Whether in every layer and row each token attends to just what it should."""
    # Attention itself is never compiled: compiled layers need not be compiled anew to watch it.
    compiled = any(getattr(m, "_compiled_call_impl", None) for m in student.decoder.modules())
    stance = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with stance, watch_averages(student.handle, regime, windows, _items(batch)) as errors:
        hidden = _run(student, batch, batch.ids, regime)
    if hidden.isnan().any():
        raise UserError(f"this model cannot be trained: {why_nan(student.model)}")
    fault = fault_in_averages(errors, len(windows))
    fine = f"all {len(windows)} layers attend as they should in all {len(batch.ids)} rows"
    return Check("every layer", fault is None, fault or fine)


def _run(student: Student, batch: TrainBatch, ids: torch.Tensor, regime: Regime) -> torch.Tensor:
    """Last hidden states, float32, the way a training step computes them (gradients included)."""
    with same_luck(batch.ids.device), student.handle.use(regime, batch.layout):
        changed_batch = batch._replace(ids=ids)
        return within(student.model, lambda: student.everywhere(changed_batch)).detach().float()


def _choose(batch: TrainBatch, regime: Regime, windows: Windows) -> tuple[Placed, int]:
    """The shortest sample in which the regime shows, and the prompt token to change.

    It is the last one that something looks ahead at (the prompt's last, unless ``tail`` or another
    dial says otherwise), and simply the prompt's last under ``causal``.
    """
    for item in sorted(_items(batch), key=lambda item: (item.n_total, item.row, item.begin)):
        if item.n_prefix < 2:
            continue
        if not regime.bidirectional:
            return item, item.n_prefix - 1
        for token in range(item.n_prefix - 1, 0, -1):
            sees, _ = _expected(item, token, regime, windows)
            if sees[:token].any():
                return item, token
    raise UserError(
        f"under '{regime}' no prompt token of the first batch looks ahead: this would be causal "
        "training; use weaker dials or longer prompts"
        if regime.bidirectional
        else "no prompt of the first batch has two tokens; use longer prompts"
    )


def _two_rows(batch: TrainBatch, item: Placed) -> tuple[TrainBatch, Placed]:
    """The batch's row that holds the item, and one more: enough to show everything, and cheap."""
    others = [row for row in range(len(batch.ids)) if row != item.row]
    rows = [item.row, *others[:1]]
    layout = batch.layout.map(lambda tensor: tensor[rows])
    return batch._replace(ids=batch.ids[rows], layout=layout), item._replace(row=0)


def _items(batch: TrainBatch) -> list[Placed]:
    """Where the samples lie."""
    item = batch.layout.item.cpu().numpy()
    n_prefix = batch.layout.n_prefix.cpu().numpy()
    items = []
    for row in range(len(item)):
        for value in np.unique(item[row][item[row] >= 0]):
            places = np.flatnonzero(item[row] == value)
            begin = int(places[0])
            items.append(Placed(row, begin, int(n_prefix[row, begin]), len(places)))
    return items


def _expected(
    item: Placed, token: int, regime: Regime, windows: Windows
) -> tuple[np.ndarray, np.ndarray]:
    """Who sees ``token`` in some layer, and whom its change can reach at all."""
    sees = np.zeros(item.n_total, dtype=bool)
    reach = np.zeros(item.n_total, dtype=bool)
    reach[token] = True
    for layer, window in enumerate(windows):
        allowed = visibility(regime, item.n_prefix, item.n_total, layer=layer, window=window)
        sees |= allowed[:, token]
        reach |= allowed[:, reach].any(axis=1)
    return sees, reach
