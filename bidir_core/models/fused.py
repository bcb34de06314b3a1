"""Norms, rotary embeddings and gates in one GPU kernel each, rounded where the model rounds them.

transformers writes these out in single operations, each of which reads and writes all hidden states:
seven for an RMS norm, five for a rotary embedding. On a GPU, where matrix products are fast, they
take much of an evaluation's time. The kernels are in :mod:`bidir_core.models.fused_kernels`; for norms torch
has one, too, which the weights are multiplied with afterwards.

Each replaces the model's own only where it gave the same numbers on a sample, and only torch's where
gradients are asked for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import rms_norm

SHARE_THAT_MAY_DIFFER = 0.01  # of numbers in a 16-bit format: those that lay next to a border
WIDE = 100.0  # scale of a sample that reaches what some models clamp
# Numbers from which on a kernel is worth its launch, which takes Triton longer than it takes torch.
WORTH_A_LAUNCH = 1 << 20
ATTEND_UP_TO = 2048  # keys; a mask of more is rare, see attention


class Rotary(NamedTuple):
    """A family's own function, and in which formats the kernel gave its numbers."""

    own: Callable[..., Any]
    agreed: dict[torch.dtype, bool]


_ROTARY: dict[Any, Rotary] = {}  # by the module of source code


def fuse(model: nn.Module) -> list[str]:
    """Let a model on a GPU run fused kernels; which: ``attention``, ``gates``, ``norms``, ``rotary``.

    The rotary embedding is a function of the model family's module: it changes for all models of
    the family in this process, until :func:`restore`.
    """
    _restore_modules(model)
    kernels = set()
    norms: dict[type, Any] = {}
    for module in list(model.modules()):
        if _is_norm(module):
            if type(module) not in norms:
                norms[type(module)] = _agreeing_norm(module)
            if (norm := norms[type(module)]) is not None:
                module.forward = MethodType(norm, module)  # copied along with the module
                kernels.add("norms")
        # One by one: a class may clamp in some layers only.
        elif _is_gated(module) and _passes(_gated_agrees, module):
            module.forward = MethodType(_gated, module)
            kernels.add("gates")
    weight = next(model.parameters())
    formats = {p.dtype for p in model.parameters() if p.element_size() > 1}
    for family in _families(model):
        rotary = _ROTARY.get(family) or Rotary(family.apply_rotary_pos_emb, {})
        for dtype in formats - set(rotary.agreed):
            rotary.agreed[dtype] = _passes(_rotary_agrees, rotary.own, weight.device, dtype)
        if any(rotary.agreed[dtype] for dtype in formats):
            kernels.add("rotary")
            if family not in _ROTARY:
                _ROTARY[family] = rotary
                family.apply_rotary_pos_emb = _rotary(rotary)
    widths = {getattr(module, "head_dim", None) for module in model.modules()} - {None}
    if any(_attends(weight.device, dtype, width) for dtype in formats for width in widths):
        kernels.add("attention")
    return sorted(kernels)


def restore(model: nn.Module) -> None:
    """Undo :func:`fuse`: for a compiler that fuses more by itself, or to compare with the plain model."""
    _restore_modules(model)
    for family in _families(model):
        if family in _ROTARY:
            family.apply_rotary_pos_emb = _ROTARY.pop(family).own


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """The model as transformers has it, for a peer to run inside."""
    restore(model)
    try:
        yield
    finally:
        if _on_gpu(next(model.parameters())):
            fuse(model)


def _restore_modules(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) in (_norm, _norm_at_once, _gated):
            del module.forward


def _passes(check: Callable[..., bool], *arguments: Any) -> bool:
    """A check that fails to run has failed: the model's own operations remain."""
    with contextlib.suppress(Exception), torch.no_grad():
        return check(*arguments)
    return False


# --- RMS norms ------------------------------------------------------------------------------


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None
    return named and isinstance(weight, torch.Tensor) and weight.dim() == 1


def _norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _norm_by_torch(hidden, module.weight, _epsilon(module))


def _norm_at_once(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    plain = torch.is_grad_enabled() or not _on_gpu(hidden) or hidden.numel() < WORTH_A_LAUNCH
    if plain or not hidden.is_contiguous() or hidden.dtype != module.weight.dtype:
        return _norm(module, hidden)
    return _norm_by_triton(hidden, module.weight, _epsilon(module))


def _norm_by_torch(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float | None
) -> torch.Tensor:
    """The norm in float32, rounded to the hidden states' format; then the weights."""
    return weight * rms_norm(hidden, hidden.shape[-1:], None, epsilon)


def _norm_by_triton(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float | None
) -> torch.Tensor:
    from bidir_core.models.fused_kernels import norm_times

    assert epsilon is not None
    return norm_times(hidden, weight, epsilon)


def _agreeing_norm(module: Any) -> Callable[..., torch.Tensor] | None:
    """The quickest way to a norm that gives the module's own numbers."""
    if not _passes(_norm_agrees, module, _norm_by_torch):
        return None
    return _norm_at_once if _passes(_norm_agrees, module, _norm_by_triton) else _norm


def _norm_agrees(module: Any, norm: Callable[..., torch.Tensor]) -> bool:
    """Whether ``norm`` gives the module's numbers. Gemma's weights are offsets from 1."""
    hidden, scale = _random(module.weight, (64, len(module.weight)), (len(module.weight),))
    result = norm(hidden, scale, _epsilon(module))
    return same(result, torch.func.functional_call(module, {"weight": scale}, (hidden,)))


def _epsilon(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(module, name, None), float):
            return value
    return None


# --- gates ----------------------------------------------------------------------------------


def _is_gated(module: Any) -> bool:
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    named = type(module).__name__.endswith("MLP")
    return named and all(isinstance(getattr(module, name, None), nn.Module) for name in names)


def _gated(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() or not _on_gpu(hidden):
        return type(module).forward(module, hidden)
    from bidir_core.models.fused_kernels import silu_times

    gate, up = module.gate_proj(hidden), module.up_proj(hidden)
    return module.down_proj(silu_times(gate.contiguous(), up.contiguous()))


def _gated_agrees(module: Any) -> bool:
    """Whether the kernel gives its numbers: not with another activation than SiLU."""
    from bidir_core.models.fused_kernels import silu_times

    weight = module.up_proj.weight
    if not _on_gpu(weight):
        return False
    like = weight if weight.element_size() > 1 else weight.new_empty(0, dtype=torch.bfloat16)
    gate, up, hidden = _random(like, (64, 1024), (64, 1024), (8, module.up_proj.in_features))
    if not all(
        same(silu_times(gate * scale, up), module.act_fn(gate * scale) * up) for scale in (1.0, 8.0)
    ):
        return False
    return all(
        same(_gated(module, hidden * scale), type(module).forward(module, hidden * scale), True)
        for scale in (1.0, WIDE)
    )


# --- rotary embeddings ----------------------------------------------------------------------


def _families(model: nn.Module) -> list[Any]:
    """The modules of source code that the model's attention comes from."""
    names = {type(m).__module__ for m in model.modules() if hasattr(m, "layer_idx")}
    modules = [sys.modules[name] for name in sorted(names)]
    return [family for family in modules if hasattr(family, "apply_rotary_pos_emb")]


def _rotary(rotary: Rotary) -> Callable[..., Any]:
    def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> Any:
        plain = args or kwargs or torch.is_grad_enabled() or not _on_gpu(q)
        if plain or not rotary.agreed.get(q.dtype, False):
            return rotary.own(q, k, cos, sin, *args, **kwargs)
        from bidir_core.models.fused_kernels import can_rotate, rotate

        if not (can_rotate(q, cos, sin) and can_rotate(k, cos, sin)):
            return rotary.own(q, k, cos, sin)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return apply_rotary_pos_emb


def _rotary_agrees(original: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel gives its numbers: not where halves are interleaved or partly rotated."""
    from bidir_core.models.fused_kernels import rotate

    like = torch.empty(0, device=device, dtype=dtype)
    q, k, cos, sin = _random(like, (2, 5, 3, 64), (2, 5, 1, 64), (2, 5, 64), (2, 5, 64))
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    rotated = rotate(q, cos, sin), rotate(k, cos, sin)
    return all(map(same, rotated, original(q, k, cos, sin)))


# --- beside the model -----------------------------------------------------------------------


def repeat_heads(states: torch.Tensor, n: int) -> torch.Tensor:
    """Each head ``n`` times in a row: ``[batch, heads, time, head_dim]`` to ``n`` times the heads.

    Laid out as a projection's output, token by token, so that whole heads are copied.
    """
    plain = torch.is_grad_enabled() or not _on_gpu(states) or states.numel() >= 1 << 31
    if not plain and states.stride(-1) == 1 and (kernels := _kernels(states.device)) is not None:
        return kernels.repeat_heads(states, n)
    by_token = states.transpose(1, 2)[:, :, :, None]
    return by_token.expand(-1, -1, -1, n, -1).flatten(2, 3).transpose(1, 2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None,
) -> torch.Tensor | None:
    """Attention on a GPU under an added mask: ``[batch, query, heads, head_dim]``; None where sdpa must.

    For rows of the length that items have: under a mask sdpa has no fast kernel but cuDNN's, whose
    plan costs more than it saves there.
    """
    width, operands = query.shape[-1], (query, key, value, mask)
    if torch.is_grad_enabled() or key.shape[2] > ATTEND_UP_TO:
        return None
    if any(t.stride(-1) != 1 or t.dtype != query.dtype for t in operands):
        return None
    if value.shape != key.shape or not _attends(query.device, query.dtype, width):
        return None
    from bidir_core.models import fused_kernels as kernels

    return kernels.attend(query, key, value, mask, width**-0.5 if scale is None else scale)


@cache
def _attends(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the attention kernel runs on heads of this format and width, and gives their numbers."""
    fits = (
        dtype in (torch.bfloat16, torch.float16) and 16 <= width <= 128 and width.bit_count() == 1
    )
    return fits and _passes(_attention_agrees, torch.empty(0, device=device, dtype=dtype), width)


def log_sum(logits: torch.Tensor) -> torch.Tensor | None:
    """The logarithm of each row's sum of exponentials: float32 ``[n]``; None where no kernel runs."""
    if not _on_gpu(logits) or torch.is_grad_enabled() or logits.stride(-1) != 1:
        return None
    return None if (kernels := _kernels(logits.device)) is None else kernels.log_sum(logits)


@cache
def _kernels(device: torch.device) -> Any:
    """The module of Triton kernels, None where they do not run or give other numbers."""
    if not _passes(_kernels_agree, device):
        return None
    from bidir_core.models import fused_kernels

    return fused_kernels


def _kernels_agree(device: torch.device) -> bool:
    """Asked of odd numbers of heads and entries, and of masked logits in more than one block."""
    from bidir_core.models import fused_kernels as kernels

    like = torch.empty(0, device=device, dtype=torch.bfloat16)
    states, logits = _random(like, (2, 5, 3, 80), (8, 5000))
    states = states.transpose(1, 2)
    logits[1, :4500], logits[2] = -torch.inf, 3.0
    sums, exact = kernels.log_sum(logits), logits.float().logsumexp(-1)
    copied = torch.equal(kernels.repeat_heads(states, 3), states.repeat_interleave(3, dim=1))
    return copied and torch.allclose(sums, exact, atol=1e-5)


def _attention_agrees(like: torch.Tensor, width: int) -> bool:
    """Asked of grouped heads and two blocks of keys, the first hidden from half the queries."""
    from bidir_core.models import fused_kernels as kernels

    query, key, value = _random(like, (2, 70, 4, width), (2, 70, 2, width), (2, 70, 2, width))
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    visible = torch.ones(70, 70, dtype=torch.bool, device=like.device).tril()
    visible[35:, :35] = False
    mask = torch.zeros(2, 1, 70, 70, dtype=like.dtype, device=like.device)
    mask.masked_fill_(~visible, torch.finfo(like.dtype).min)
    result = kernels.attend(query, key, value, mask, width**-0.5)
    query, key, value = (
        t.float().repeat_interleave(4 // t.shape[1], dim=1) for t in (query, key, value)
    )
    exact = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return torch.allclose(result.float(), exact.transpose(1, 2), atol=0.02)


def _on_gpu(tensor: torch.Tensor) -> bool:
    """Where the kernels of :mod:`bidir_core.models.fused_kernels` run."""
    return tensor.is_cuda


# --- the same numbers -----------------------------------------------------------------------


def _random(like: torch.Tensor, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    seeded = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=seeded).to(like.device, like.dtype) for shape in shapes]


def same(result: torch.Tensor, reference: torch.Tensor, summed: bool = False) -> bool:
    """Whether two results of one computation differ by nothing but the order of its sums.

    ``summed``: long sums of what was computed, in which single roundings show everywhere.
    """
    if result.dtype != reference.dtype or result.shape != reference.shape:
        return False
    eps, scale = torch.finfo(result.dtype).eps, float(reference.float().abs().max())
    difference = (result.float() - reference.float()).abs()
    if not float(difference.max()) <= 4 * eps * scale:
        return False
    if result.dtype == torch.float32 or summed:
        return True
    return float((result != reference).float().mean()) <= SHARE_THAT_MAY_DIFFER
