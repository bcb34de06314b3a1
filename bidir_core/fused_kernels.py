"""Triton kernels of :mod:`bidir_core.fused`: one pass over memory where torch's operations take five.

They round where the operations that they replace do, so results are the same numbers. Inference
only: no gradients go through them.
"""

# Triton reads annotations: no "from __future__ import annotations" here.
import contextlib

import torch
import triton
import triton.language as tl


@triton.jit
def _rounded(x, FORMAT: tl.constexpr):
    """Float32 numbers as they are in a shorter format, still in float32."""
    if tl.bfloat16 == FORMAT:
        # By its bits: a compiler may take there and back for nothing.
        bits = x.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
        return (bits << 16).to(tl.float32, bitcast=True)
    return x.to(FORMAT).to(tl.float32)


@triton.jit
def _rotate(
    x, out, cos, sin, time,
    x_row, x_time, x_head, cos_row, cos_time, sin_row, sin_time,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, at = token // time, token % time
    head = tl.arange(0, HEADS_PADDED)[:, None]
    half = tl.arange(0, HALF)[None, :]
    place = row * x_row + at * x_time + head * x_head + half
    real = head < HEADS
    first = tl.load(x + place, mask=real).to(tl.float32)
    second = tl.load(x + place + HALF, mask=real).to(tl.float32)
    cos_place = cos + row * cos_row + at * cos_time + half
    sin_place = sin + row * sin_row + at * sin_time + half
    to: tl.constexpr = out.dtype.element_ty
    a = _rounded(first * tl.load(cos_place).to(tl.float32), to)
    b = _rounded(second * tl.load(sin_place).to(tl.float32), to)
    tl.store(out + place, (a - b).to(to), mask=real)
    a = _rounded(second * tl.load(cos_place + HALF).to(tl.float32), to)
    b = _rounded(first * tl.load(sin_place + HALF).to(tl.float32), to)
    tl.store(out + place + HALF, (a + b).to(to), mask=real)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x * cos + rotate_half(x) * sin``: ``x`` ``[batch, heads, time, head_dim]``, the others
    ``[batch or 1, time, head_dim]``."""
    out = torch.empty_like(x)  # with x's strides
    batch, heads, time, width = x.shape
    x_row, x_head, x_time, _ = x.stride()
    cos_row, sin_row = (t.stride(0) if t.shape[0] > 1 else 0 for t in (cos, sin))
    with _on(x):
        _rotate[(batch * time,)](
            x, out, cos, sin, time, x_row, x_time, x_head,
            cos_row, cos.stride(1), sin_row, sin.stride(1),
            HEADS=heads, HEADS_PADDED=triton.next_power_of_2(heads), HALF=width // 2,
        )  # fmt: skip
    return out


def _on(x: torch.Tensor):
    """Kernels start on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def can_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether :func:`rotate` takes these."""
    batch, _, time, width = x.shape
    return (
        all(t.shape[-2:] == (time, width) and t.shape[0] in (1, batch) for t in (cos, sin))
        and cos.dim() == sin.dim() == 3
        and all(t.is_cuda and t.stride(-1) == 1 for t in (x, cos, sin))
        and x.dtype == cos.dtype == sin.dtype
        and (half := width // 2) & (half - 1) == 0
        and width == 2 * half
        and torch.empty_like(x, device="meta").stride() == x.stride()
    )


@triton.jit
def _silu_times(gate, up, out, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    g = tl.load(gate + place, mask=inside).to(tl.float32)
    u = tl.load(up + place, mask=inside).to(tl.float32)
    to: tl.constexpr = out.dtype.element_ty
    activated = _rounded(g / (1.0 + tl.exp(-g)), to)
    tl.store(out + place, (activated * u).to(to), mask=inside)


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``, both contiguous and of one shape."""
    out, block = torch.empty_like(gate), 1024
    n = gate.numel()
    with _on(gate):
        _silu_times[(triton.cdiv(n, block),)](gate, up, out, n, BLOCK=block)
    return out
