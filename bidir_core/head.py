"""The output head a block at a time: log-likelihoods without the whole row of logits.

A row of logits is as long as the vocabulary, and all that is wanted of it is one entry and the
logarithm of the sum of exponentials. Block by block of the vocabulary, weights and logits stay in a
CPU's cache; the sums of the blocks add up as the sum of the row does.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from bidir_core.training.student import Student

ROWS = 512
VOCABULARY = {"cpu": 2048}  # elsewhere the whole row: small kernels would leave a GPU idle
WHOLE_ROWS = 64  # where the head is no plain matrix, or on a GPU


def token_ll(
    student: Student, hidden: torch.Tensor, source: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Natural log-likelihood of each ``target`` token: float32 ``[n_scored]``.

    ``hidden`` ``[n, width]``: last hidden states that predict; ``source`` ``[n_scored]``: which of
    them predicts each target.
    """
    parts = _blocks(student, hidden.device)
    rows = ROWS if len(parts) > 1 else WHOLE_ROWS
    scores = torch.empty(len(target), device=hidden.device)
    for start in range(0, len(hidden), rows):
        mine = torch.nonzero((source >= start) & (source < start + rows)).flatten()
        row, token = source[mine] - start, target[mine]
        picked = torch.empty(len(mine), device=hidden.device)
        norms = []
        for begin, part in parts:
            logits = part.logits(hidden[start : start + rows]).float()
            norms.append(logits.logsumexp(-1))
            here = torch.nonzero((token >= begin) & (token < begin + logits.shape[-1])).flatten()
            picked[here] = logits[row[here], token[here] - begin]
        norm = torch.stack(norms).logsumexp(0) if len(norms) > 1 else norms[0]
        scores[mine] = picked - norm[row]
    return scores


def _blocks(student: Student, device: torch.device) -> list[tuple[int, Student]]:
    """The head cut along the vocabulary: each block's first token, and the model ending in it."""
    head, step = student.head, VOCABULARY.get(device.type)
    if step is None or type(head) is not nn.Linear:
        return [(0, student)]
    parts = []
    for begin in range(0, head.out_features, step):
        block = nn.Linear(1, 1, bias=False)  # holds views, no weights of its own
        block.weight = nn.Parameter(head.weight[begin : begin + step], requires_grad=False)
        if head.bias is not None:
            block.bias = nn.Parameter(head.bias[begin : begin + step], requires_grad=False)
        part = copy.copy(student)
        part.head = block
        parts.append((begin, part))
    return parts
