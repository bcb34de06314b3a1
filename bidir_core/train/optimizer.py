"""AdamW with float32 master weights, a cosine schedule, and clipping without waiting for the GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from bidir_core.train.config import FinetuneConfig
from bidir_core.train.student import own, spread_like, whole


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """The rate of a step (0-based): linear warm-up to the peak, then half a cosine to the end.

    The warm-up is at most half of the steps, so that a short run comes down too. A pure function
    of the step, so a resumed run needs no scheduler state.
    """
    warmup = min(config.warmup_steps, config.steps // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class MasterAdamW:
    """AdamW over float32 copies of the trained weights (or the weights, if they are float32).

    bfloat16 has 8 bits of precision: an update of a thousandth of a weight would vanish in it, and
    so would a small gradient added to a large one. So gradients are added up, and weights are
    kept, in float32; the model computes with rounded copies.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], config: FinetuneConfig):
        self.names = list(parameters)
        self.weights = list(parameters.values())
        self.clip = config.clip
        self.rounded = any(weight.dtype != torch.float32 for weight in self.weights)
        self.masters = [
            weight if weight.dtype == torch.float32 else weight.detach().float()
            for weight in self.weights
        ]
        for master in self.masters:
            master.requires_grad_(True)
        self.keeps_gradients = False
        groups = [
            {
                "params": [m for m in self.masters if (m.dim() >= 2) is matrix],
                "weight_decay": config.weight_decay if matrix else 0.0,
            }
            for matrix in (True, False)
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=(0.9, config.beta2),
            fused=self.weights[0].device.type == "cuda",
        )

    def keep_gradients(self) -> None:
        """Add gradients up in the same tensors in every step: a recorded step writes nowhere else."""
        self.keeps_gradients = True
        self.gradients()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of a micro-batch to the masters'. Call it after every backward."""
        if not self.rounded:
            return
        for weight, master in zip(self.weights, self.masters):
            if master is weight or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None

    @torch.no_grad()
    def gradients(self) -> list[torch.Tensor]:
        """The step's gradients, zeros where a process had nothing to do."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters]  # type: ignore[misc]

    @torch.no_grad()
    def step(self, lr: float) -> torch.Tensor:
        """One update; returns the gradient's norm before clipping, left on the device."""
        norm = whole(torch.nn.utils.get_total_norm(self.gradients()))
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.masters, self.clip, norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=not self.keeps_gradients)
        if self.rounded:
            torch._foreach_copy_([own(w.data) for w in self.weights], list(map(own, self.masters)))
        return norm

    def tensors(self, *, keep: bool = True) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, by name: weights and moments, whole.

        Where they are spread, all processes must call it; without ``keep`` they get nothing.
        """
        by_name: dict[str, torch.Tensor] = {}
        for name, master in zip(self.names, self.masters):
            state = self.adamw.state.get(master, {})
            for key, value in {"weight": master.detach(), **state}.items():
                gathered = whole(value)
                if keep:  # one at a time: a device may not hold all of them
                    spread = gathered is not value
                    by_name[f"{key}/{name}"] = gathered.cpu() if spread else value
        return by_name

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`tensors` gave. Raises KeyError where something is missing."""
        for name, weight, master in zip(self.names, self.weights, self.masters):
            master.copy_(spread_like(tensors[f"weight/{name}"], master))
            if master is not weight:
                weight.copy_(master)
            state = self.adamw.state[master]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"{key}/{name}"]
                if key != "step":
                    value = spread_like(value, master)
                # Fused AdamW counts its steps on the device.
                on_device = key != "step" or bool(self.adamw.defaults.get("fused"))
                state[key] = value.to(master.device if on_device else "cpu", copy=True)
