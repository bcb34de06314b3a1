"""Which of sdpa's kernels may run where shapes change from one call to the next.

On GPUs of compute capability 9 and 10 torch 2.11 to 2.13 prefers cuDNN's kernel in 16-bit formats
(``check_prefer_cudnn_attention`` in torch's aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
cuDNN builds a plan for every shape that it has not met, which takes far longer than the attention
of a short batch, and an evaluation's batches are all of different shapes. The flash and efficient
kernels need no plan. Training keeps torch's choice: its batches come in a few shapes, again and
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
