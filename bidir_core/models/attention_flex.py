"""Attention by FlexAttention: a regime as a rule over pairs of tokens, never a query x key mask.

Every regime, window, packing and token tree comes down to two numbers a query, so that one
compiled kernel serves them all (a rule of its own for each would be compiled anew each time):

    floor   of what precedes the query (its ancestors and itself), the lowest position it sees
    reach   of what follows it in its item, the position up to which it sees, exclusive

                              floor      reach
    causal                    0          0
    bidirectional, prefix     0          n_prefix - tail     (0 where sink, rows, skip say so)
    window of W               q - W + 1  at most q + W
    self token                q          0

A key that is hidden from all others is a leaf of an item of its own.

Which blocks of 128 x 128 pairs are empty, full or mixed is counted in strips of queries; the kernel
skips the first, asks nothing about the second and applies the rule inside the third.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bidir_core.common.errors import UserError
from bidir_core.models.layout import PADDING, Layout
from bidir_core.regimes import Regime, looks_ahead

BLOCK = 128
# Pairs of tokens whose visibility is worked out at once.
STRIP_PAIRS = {"cpu": 1 << 22, "cuda": 1 << 26}
LEAST_HEAD_DIM = 16  # of the GPU kernel
ALONE = PADDING - 1  # an item that no query belongs to
RECOMPILES = 64  # shapes and kinds of scores that may be compiled for before it is an error
Rule = Callable[[Any, Any, Any, Any], torch.Tensor]


class Blocks(NamedTuple):
    """What one kind of layer sees. ``log_lambda``: float32 ``[batch]``, None where it adds nothing."""

    mask: BlockMask
    query_position: torch.Tensor
    key_position: torch.Tensor
    log_lambda: torch.Tensor | None


def make_blocks(
    layout: Layout, regime: Regime, window: int | None, n_query: int, n_key: int, batch: int = 1
) -> Blocks:
    """The last ``n_query`` tokens' view of the last ``n_key`` ones. ``regime`` is one layer's.

    A layout of one row serves a ``batch`` of any size.
    """
    if layout.shape[0] == 1 != batch:
        item, position = layout.item.expand(batch, -1), layout.position.expand(batch, -1)
        layout = Layout(
            item, position, layout.n_prefix.expand(batch, -1), layout.exit.expand(batch, -1)
        )
    position = layout.position[:, -n_query:].int().contiguous()
    keys = layout.position[:, -n_key:].int().contiguous()
    rule = pair_rule(layout, regime, window, n_query, n_key)
    log_lambda = None
    if regime.lam != 1.0:
        log_lambda = torch.full((len(keys),), math.log(regime.lam), device=keys.device)
    return Blocks(_mask(rule, len(keys), n_query, n_key, keys.device), position, keys, log_lambda)


def pair_rule(layout: Layout, regime: Regime, window: int | None, n_query: int, n_key: int) -> Rule:
    """``rule(batch, head, query, key)`` -> may it be seen; indices or index tensors that broadcast."""
    time = layout.shape[1]
    position = layout.position[:, -n_query:]
    n_prefix = layout.n_prefix[:, -n_query:]
    # Whether a query sees the very next token; how far it sees then depends on the item alone.
    looks = (position < n_prefix) & looks_ahead(regime, position, position + 1, n_prefix)
    looks = looks & regime.bidirectional
    reach = torch.where(looks, n_prefix - regime.tail, 0)
    floor = torch.zeros_like(position)
    if regime.self_token is not None:
        lonely = (position == regime.self_token) & (position < n_prefix)
        floor, reach = torch.where(lonely, position, floor), torch.where(lonely, 0, reach)
    if window is not None:
        floor, reach = floor.maximum(position - window + 1), reach.minimum(position + window)
    index = torch.arange(time, device=position.device, dtype=torch.int32)
    q_index, k_index = index[time - n_query :], index[time - n_key :]
    q_item, k_item = _int32(layout.item, n_query), _int32(layout.item, n_key)
    q_position, k_position = _int32(layout.position, n_query), _int32(layout.position, n_key)
    k_exit, floor, reach = _int32(layout.exit, n_key), _int32(floor), _int32(reach)
    if regime.hide is not None:
        hidden = ((layout.position == regime.hide) & (regime.hide < layout.n_prefix))[:, -n_key:]
        k_exit, k_item = torch.where(hidden, k_index + 1, k_exit), k_item.masked_fill(hidden, ALONE)

    def rule(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        index, position = q_index[query], k_position[batch, key]
        descends = (k_index[key] <= index) & (index < k_exit[batch, key])
        before = descends & (position >= floor[batch, query])
        same_item = k_item[batch, key] == q_item[batch, query]
        ahead = same_item & (position > q_position[batch, query]) & (position < reach[batch, query])
        return before | ahead

    return rule


def _int32(tensor: torch.Tensor, last: int | None = None) -> torch.Tensor:
    return (tensor if last is None else tensor[:, -last:]).to(torch.int32).contiguous()


def _mask(rule: Rule, batch: int, n_query: int, n_key: int, device: torch.device) -> BlockMask:
    """Blocks that hold some and all of the allowed pairs, worked out a strip of queries at a time."""
    rows, columns = math.ceil(n_query / BLOCK), math.ceil(n_key / BLOCK)
    any_visible = torch.empty(batch, rows, columns, dtype=torch.bool, device=device)
    all_visible = torch.empty_like(any_visible)
    pairs = STRIP_PAIRS.get(device.type, 1 << 24)
    strip = max(1, pairs // (batch * columns * BLOCK * BLOCK))
    row = torch.arange(batch, device=device)[:, None, None]
    key = torch.arange(n_key, device=device)[None, None, :]
    for first in range(0, rows, strip):
        last = min(first + strip, rows)
        query = torch.arange(first * BLOCK, min(last * BLOCK, n_query), device=device)
        visible = rule(row, None, query[None, :, None], key)
        beyond = (0, columns * BLOCK - n_key, 0, (last - first) * BLOCK - len(query))
        visible = torch.nn.functional.pad(visible, beyond).view(
            batch, last - first, BLOCK, columns, BLOCK
        )
        any_visible[:, first:last] = visible.any(4).any(2)
        all_visible[:, first:last] = visible.all(4).all(2)
    return BlockMask.from_kv_blocks(
        *_ordered(any_visible & ~all_visible),
        *_ordered(all_visible),
        BLOCK_SIZE=BLOCK,
        mask_mod=rule,
        seq_lengths=(n_query, n_key),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row of ``[batch, rows, columns]`` has, and which, as BlockMask wants."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over ``[batch, heads, time, head_dim]``. UserError for what it can't compute."""
    _refuse(module, query, dropout, kwargs)
    group = query.shape[1] // key.shape[1]
    if group.bit_count() > 1:  # the kernel groups heads by powers of two
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    output = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=_score_mod(blocks, softcap),
        block_mask=blocks.mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        # Never the other kernel that there is for few queries: the probe's short sequences must
        # go through the one that scoring and training use.
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    return output.transpose(1, 2), None


def _score_mod(blocks: Blocks, softcap: float | None) -> Any:
    """What is done to scores beside the mask: the soft cap first, then ``log(lambda)`` ahead."""
    log_lambda, q_position, k_position = blocks.log_lambda, *blocks[1:3]
    if log_lambda is None and softcap is None:
        return None

    def change(score: Any, batch: Any, head: Any, query: Any, key: Any) -> Any:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if log_lambda is not None:
            # Of the pairs that the mask allows, those that look ahead have a later position.
            ahead = k_position[batch, key] > q_position[batch, query]
            score = score + torch.where(ahead, log_lambda[batch], 0.0)
        return score

    return change


@cache
def _kernel(device_type: str) -> Any:
    """Compiled on a GPU; elsewhere torch's own uncompiled version, which is for correctness."""
    if device_type != "cuda":
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention
    # Falling back to the uncompiled version would build all scores: an error is better.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    compiled = torch.compile(flex_attention, fullgraph=True)

    def always_compiled(*args: Any, **kwargs: Any) -> Any:
        # also where a fine-tune's quick evaluation runs its compiled layers uncompiled
        with torch.compiler.set_stance("default"):
            return compiled(*args, **kwargs)

    return always_compiled


def _refuse(
    module: torch.nn.Module, query: torch.Tensor, dropout: float, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    for unable in ("s_aux", "position_bias"):
        if kwargs.get(unable) is not None:
            raise UserError(f"{name} needs '{unable}', which flex drops; use --attn eager")
    if dropout:
        raise UserError(f"{name} drops attention weights in training; use --attn sdpa")
    if query.requires_grad and query.device.type != "cuda":
        raise UserError("attention 'flex' trains on a CUDA GPU only; use --attn sdpa here")
    if query.device.type == "cuda" and query.shape[-1] < LEAST_HEAD_DIM:
        raise UserError(
            f"{name} has heads of {query.shape[-1]} numbers and flex needs {LEAST_HEAD_DIM} on a "
            "GPU; use --attn sdpa"
        )
