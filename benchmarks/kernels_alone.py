"""Each Triton kernel of an evaluation against torch's own operations, on awkward shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bidir_core.models import fused


@torch.no_grad()
def kernels_alone(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Norms, repeated heads and sums of exponentials; elsewhere than on a GPU torch's stand in."""
    torch.manual_seed(0)
    sums = _sums_of_exponentials(dtype, device)
    heads = all(
        torch.equal(fused.repeat_heads(states, 4), states.repeat_interleave(4, dim=1))
        for n_heads, width in ((8, 128), (3, 64), (1, 80))
        for laid_out in (torch.randn(2, 7000, n_heads, width, device=device, dtype=dtype),)
        for states in (laid_out.transpose(1, 2), laid_out.transpose(1, 2).contiguous())
    )
    norms = [_norm(width, dtype, device) for width in (64, 96, 3072)]
    at_once = device.type == "cpu" or set(norms) == {"_norm_at_once"}
    return {
        "ok": sums <= 2e-6 and heads and at_once,
        "log_sum": float(f"{sums:.3g}"),
        "allowed": 2e-6,
        "heads_equal": heads,
        "norms": norms,
    }


def _sums_of_exponentials(dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference from float64, as a share: masked, equal and outstanding logits too."""
    logits = torch.randn(40, 131_073, device=device).mul(6).to(dtype)
    logits[1], logits[2, :99_000], logits[3] = torch.finfo(dtype).min, -torch.inf, 2
    logits[1, 5] = 3
    logits[4, 131_072] = 1000
    found = fused.log_sum(logits)
    if found is None:
        if device.type == "cuda":
            return float("inf")
        found = logits.float().logsumexp(-1)
    exact = logits.double().logsumexp(-1)
    return float(((found - exact) / exact.abs()).abs().max())


class LlamaRMSNorm(nn.Module):
    """The rule by which most families norm."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-5

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(hidden.dtype)


def _norm(width: int, dtype: torch.dtype, device: torch.device) -> str:
    """Which of the ways to a norm was let in."""
    found = fused._agreeing_norm(LlamaRMSNorm(width).to(device, dtype))
    return "none" if found is None else found.__name__
