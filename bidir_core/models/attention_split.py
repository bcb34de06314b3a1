"""sdpa in two passes where no mask is needed: the prefix, then what continues it.

Under plain bidirectional prefill every prefix token sees the whole prefix, and under causal what
precedes it: neither needs a mask, so the fast kernels run, and at 16,384 tokens a mask of 16,384
squared is never built. Only the continuation's few rows get one, ``[continuation, item]``:

                 prefix      continuation
    prefix       no mask     -
    contin.      the last rows of the mask

That takes two calls an item and layer, where one call with a dense mask serves a whole batch of
short items. So short prefixes go the ordinary way, as does a layer whose regime has dials that
narrow the view, or whose window is shorter than the prefix, and a batch that is not one row of
whole items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bidir_core.models.layout import Layout
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL, Regime

# Prefix tokens from which an item goes the split way. In an evaluation's batch of 32,768 tokens that
# is at most 16 items, whose calls cost little beside the layers' matrix products; the dense masks of
# shorter ones, also a batch of them, take at most 0.27 GB in a 16-bit format.
SPLIT_FROM_TOKENS = 2048


def prefixes(layout: Layout) -> tuple[tuple[int, int], ...] | None:
    """Per item of a packed row, its prefix's tokens and how far apart their positions lie.

    The second is what a window must hold. None for a layout that is not one row of items.
    """
    if layout.spans is None or layout.shape[0] != 1:
        return None
    # -1 outside of prefixes; waits for the device once
    inside = torch.where(layout.position < layout.n_prefix, layout.position, -1)[0].tolist()
    items = [[p for p in inside[start:end] if p >= 0] for start, end in layout.spans]
    return tuple((len(positions), max(positions, default=0) + 1) for positions in items)


def needs_no_mask(regime: Regime, window: int | None, reach: int) -> bool:
    """Whether prefix tokens see all of the prefix (or all before them), in one layer."""
    return regime in (CAUSAL, BIDIRECTIONAL) and (window is None or window >= reach)


def attend(
    run: Callable[..., tuple[torch.Tensor, None]],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_prefix: int,
    causal: bool,
    rest_mask: Callable[[], torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """One item: ``[1, heads, time, head_dim]`` in, ``[1, time, heads, head_dim]`` out.

    ``run`` is sdpa, which takes a mask or None with ``is_causal``; ``rest_mask`` builds the mask of
    the tokens behind the prefix, ``[1, 1, continuation, time]``.
    """
    outputs = []
    if n_prefix:
        inputs = (tensor[:, :, :n_prefix] for tensor in (query, key, value))
        outputs.append(run(*inputs, None, is_causal=causal, **kwargs)[0])
    if n_prefix < query.shape[2]:
        outputs.append(run(query[:, :, n_prefix:], key, value, rest_mask(), **kwargs)[0])
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


# Which of sdpa's kernels may run where shapes change from one call to the next.

# From here on attention takes long enough to earn a plan back. Long prefills were measured with
# cuDNN's kernel (docs/PERFORMANCE.md), at this length.
CUDNN_FROM_TOKENS = 16_384


@contextmanager
def without_plans(device: torch.device, longest: int = 0) -> Iterator[None]:
    """sdpa inside leaves cuDNN's kernel out, unless ``longest``, in tokens, is long.

    Changes nothing on other devices. The switch is the process's, not the thread's.
    """
    if (
        device.type != "cuda"
        or longest >= CUDNN_FROM_TOKENS
        or not torch.backends.cuda.cudnn_sdp_enabled()  # by the user, who then knows why
    ):
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
