"""Triton kernels of evaluations: one pass over memory where torch's operations take two to five.

They round where the operations that they replace do, so results are the same numbers. Inference
only: no gradients go through them. :mod:`bidir_core.models.fused` says where they are used.
"""

# Triton reads annotations: no "from __future__ import annotations" here.
import contextlib

import torch
import triton
import triton.language as tl

ATTEND_QUERIES = 64  # the quickest of 32 to 128, as are 32 or 64 keys, on an H200


@triton.jit
def _rounded(x, FORMAT: tl.constexpr):
    """Float32 numbers as they are in a shorter format, still in float32."""
    if tl.bfloat16 == FORMAT:
        # By way of its bits: a compiler may drop a cast there and back.
        bits = x.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
        return (bits << 16).to(tl.float32, bitcast=True)
    return x.to(FORMAT).to(tl.float32)


@triton.jit
def _rotate(
    x,
    out,
    cos,
    sin,
    time,
    x_row,
    x_time,
    x_head,
    cos_row,
    cos_time,
    sin_row,
    sin_time,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row, token_time = token // time, token % time
    head = tl.arange(0, HEADS_PADDED)[:, None]
    half = tl.arange(0, HALF)[None, :]
    place = row * x_row + token_time * x_time + head * x_head + half
    real = head < HEADS
    first_half = tl.load(x + place, mask=real).to(tl.float32)
    second_half = tl.load(x + place + HALF, mask=real).to(tl.float32)
    cos_place = cos + row * cos_row + token_time * cos_time + half
    sin_place = sin + row * sin_row + token_time * sin_time + half
    to: tl.constexpr = out.dtype.element_ty
    a = _rounded(first_half * tl.load(cos_place).to(tl.float32), to)
    b = _rounded(second_half * tl.load(sin_place).to(tl.float32), to)
    tl.store(out + place, (a - b).to(to), mask=real)
    a = _rounded(second_half * tl.load(cos_place + HALF).to(tl.float32), to)
    b = _rounded(first_half * tl.load(sin_place + HALF).to(tl.float32), to)
    tl.store(out + place + HALF, (a + b).to(to), mask=real)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x * cos + rotate_half(x) * sin``: ``x`` ``[batch, heads, time, head_dim]``, the others
    ``[batch or 1, time, head_dim]``."""
    out = torch.empty_like(x)  # with x's strides
    batch, heads, time, width = x.shape
    x_row, x_head, x_time, _ = x.stride()
    cos_row, sin_row = (t.stride(0) if t.shape[0] > 1 else 0 for t in (cos, sin))
    strides = (x_row, x_time, x_head, cos_row, cos.stride(1), sin_row, sin.stride(1))
    sizes = {"HEADS": heads, "HEADS_PADDED": triton.next_power_of_2(heads), "HALF": width // 2}
    with _current_device(x):
        _rotate[(batch * time,)](x, out, cos, sin, time, *strides, **sizes)
    return out


def _current_device(x: torch.Tensor):
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
        and x.numel() < 1 << 31  # places within a row are counted in 32 bits
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
    with _current_device(gate):
        _silu_times[(triton.cdiv(n, block),)](gate, up, out, n, BLOCK=block)
    return out


@triton.jit
def _norm_times(x, weight, out, eps, width: tl.constexpr, PADDED: tl.constexpr):
    place = tl.arange(0, PADDED)
    inside = place < width
    row = tl.program_id(0).to(tl.int64) * width
    hidden = tl.load(x + row + place, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(hidden * hidden, axis=0) / width + eps)
    to: tl.constexpr = out.dtype.element_ty
    normed = _rounded(hidden * scale, to)
    weights = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + place, (weights * normed).to(to), mask=inside)


def norm_times(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """An RMS norm over the last dimension, rounded to ``x``'s format, times ``weight`` ``[width]``.

    ``x`` is contiguous, and both have one format.
    """
    out, width = torch.empty_like(x), x.shape[-1]
    padded = triton.next_power_of_2(width)
    with _current_device(x):
        _norm_times[(x.numel() // width,)](
            x, weight, out, eps, width=width, PADDED=padded, num_warps=8 if padded > 2048 else 4
        )
    return out


@triton.jit
def _repeat_heads(
    x,
    out,
    time,
    x_row,
    x_time,
    x_head,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_PADDED)[:, None]
    place = tl.arange(0, WIDTH_PADDED)[None, :]
    real = (head < HEADS) & (place < WIDTH)
    source = token // time * x_row + token % time * x_time + head * x_head + place
    states = tl.load(x + source, mask=real)
    for copy in tl.static_range(N):
        target = out + (token * HEADS * N + head * N + copy) * WIDTH + place
        tl.store(target, states, mask=real)


def repeat_heads(x: torch.Tensor, n: int) -> torch.Tensor:
    """Each head ``n`` times in a row: ``[batch, heads, time, head_dim]`` to ``n`` times the heads.

    Laid out token by token, whatever ``x`` is; ``head_dim`` must have stride 1.
    """
    batch, heads, time, width = x.shape
    out = x.new_empty(batch, time, heads * n, width)
    x_row, x_head, x_time, _ = x.stride()
    sizes = {"N": n, "HEADS": heads, "HEADS_PADDED": triton.next_power_of_2(heads)}
    sizes |= {"WIDTH": width, "WIDTH_PADDED": triton.next_power_of_2(width)}
    with _current_device(x):
        _repeat_heads[(batch * time,)](x, out, time, x_row, x_time, x_head, **sizes)
    return out.transpose(1, 2)


@triton.jit
def _log_sum(x, out, row_stride, width: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        logits = tl.load(x + row * row_stride + place, mask=place < width, other=float("-inf"))
        logits = logits.to(tl.float32)
        higher = tl.maximum(top, logits)
        # 0 where all so far are -inf: -inf minus -inf would be NaN
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.exp(logits - base)
        top = higher
    most = tl.max(top, axis=0)
    base = tl.where(most == float("-inf"), 0.0, most)
    tl.store(out + row, tl.log(tl.sum(total * tl.exp(top - base), axis=0)) + base)


def log_sum(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of each row's sum of exponentials: ``[n, vocabulary]`` to float32 ``[n]``."""
    n, width = logits.shape
    out = torch.empty(n, dtype=torch.float32, device=logits.device)
    if n:
        with _current_device(logits):
            _log_sum[(n,)](logits, out, logits.stride(0), width=width, BLOCK=4096, num_warps=8)
    return out


LOWEST = tl.constexpr(-1e30)  # a hidden key's score: behind a seen one nothing of it is left


@triton.jit
def _attend(
    q,
    k,
    v,
    mask,
    out,
    scale,
    heads,
    n_query,
    n_key,
    q_row,
    q_head,
    q_time,
    k_row,
    k_head,
    k_time,
    v_row,
    v_head,
    v_time,
    mask_row,
    mask_time,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    n_blocks = tl.cdiv(n_query, QUERIES)
    block, pair = tl.program_id(0) % n_blocks, tl.program_id(0) // n_blocks
    head, row = pair % heads, (pair // heads).to(tl.int64)
    query = block * QUERIES + tl.arange(0, QUERIES)
    entry = tl.arange(0, WIDTH)
    real_query = (query < n_query)[:, None]
    to_query = q + row * q_row + head * q_head + query[:, None] * q_time + entry[None, :]
    queries = tl.load(to_query, mask=real_query, other=0.0)
    to_key = k + row * k_row + head // GROUP * k_head + entry[None, :]
    to_value = v + row * v_row + head // GROUP * v_head + entry[None, :]
    to_mask = mask + row * mask_row + query[:, None] * mask_time
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, n_key, KEYS):
        key = start + tl.arange(0, KEYS)
        real_key = key < n_key
        keys = tl.load(to_key + key[:, None] * k_time, mask=real_key[:, None], other=0.0)
        values = tl.load(to_value + key[:, None] * v_time, mask=real_key[:, None], other=0.0)
        added = tl.load(to_mask + key[None, :], mask=real_query & real_key[None, :], other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * scale + added.to(tl.float32)
        scores = tl.where(real_key[None, :], tl.maximum(scores, LOWEST), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        decay = tl.exp(top - higher)
        total = total * decay + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(values.dtype), values, sums * decay[:, None])
        top = higher
    to: tl.constexpr = out.dtype.element_ty
    place = ((row * n_query + query[:, None]) * heads + head) * WIDTH + entry[None, :]
    tl.store(out + place, (sums / total[:, None]).to(to), mask=real_query)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax attention of ``q`` ``[batch, heads, query, head_dim]`` over ``k`` and ``v``, which may
    have fewer heads, with ``mask`` ``[batch or 1, 1, query, key]`` added: ``[batch, query, heads,
    head_dim]``. Each query sees a key. ``head_dim`` is a power of two and has stride 1 in all."""
    batch, heads, n_query, width = q.shape
    out = q.new_empty(batch, n_query, heads, width)
    blocks = triton.cdiv(n_query, ATTEND_QUERIES)
    mask_row = mask.stride(0) if mask.shape[0] > 1 else 0
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], mask_row, mask.stride(2))
    sizes = {"GROUP": heads // k.shape[1], "WIDTH": width, "QUERIES": ATTEND_QUERIES}
    options = {"KEYS": 64 if width <= 64 else 32, "num_warps": 4, "num_stages": 1}
    with _current_device(q):
        _attend[(batch * heads * blocks,)](
            q, k, v, mask, out, scale, heads, n_query, k.shape[2], *strides, **sizes, **options
        )
    return out
