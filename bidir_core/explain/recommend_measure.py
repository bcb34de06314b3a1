"""How far a model's predictions move when it may look ahead from layer A on, on prompts alone.

For a model of L layers, each batch of prompts is run under causal, under
``bidirectional:layers=A-(L-1)`` for A = 0 .. L-1, and under ``bidirectional:sink=1``. Below layer A
the second kind computes what causal computed, so those layers hand out what they gave then: half of
the work, and the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bidir_core.common.errors import UserError
from bidir_core.evaluate.scoring import gather_before_head
from bidir_core.explain.observe import watching
from bidir_core.explain.sweep_points import SINK, open_from
from bidir_core.explain.variants import replaced_forwards
from bidir_core.models.attention import rope_switch, without_plans
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.regimes import CAUSAL, Regime

# Smaller than an evaluation's: on a GPU every layer's output is kept for a batch, and on a CPU small
# batches of like lengths have little padding.
BATCH_TOKENS = {"cpu": 256, "cuda": 8192, "mps": 4096}


@dataclass(frozen=True)
class PromptMeasures:
    """One prompt, for a model of L layers.

    ``kl`` and ``agrees`` ``[L + 1]``: KL(causal || bidirectional from layer A on) in nats and top-1
    agreement, by A; at A = L it is causal. ``first_norm`` ``[L]``: the norm of the first token
    over the median of the others', in each layer's input. ``to_first`` ``[L]``: the share of
    attention on the first token. The last two are causal's.
    """

    n_tokens: int
    kl: np.ndarray
    agrees: np.ndarray
    sink_kl: float
    sink_agrees: float
    first_norm: np.ndarray
    to_first: np.ndarray


def n_passes(n_layers: int) -> int:
    """Passes of each prompt: causal, each first layer, the sink, and one that shows attention."""
    return n_layers + 3


def measure(
    loaded: LoadedModel,
    prompts: Sequence[np.ndarray],
    *,
    batch_tokens: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[tuple[int, PromptMeasures]]:
    """Each prompt's measures with its index, longest prompts first.

    ``prompts``: token ids, int64 ``[n_tokens]``. ``advance`` is told of every prompt's every pass.
    Raises UserError when memory runs out.
    """
    model = _Model(loaded)
    budget = batch_tokens or BATCH_TOKENS.get(loaded.device.type, 256)
    lengths = [len(ids) for ids in prompts]
    for batch in _batches(lengths, budget, rope_switch(loaded.model.config)):
        try:
            with torch.inference_mode(), without_plans(loaded.device):
                measures = model.measure([prompts[i] for i in batch], advance)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {len(batch)} prompts of up to {lengths[batch[0]]} tokens; "
                "give a smaller --batch-tokens, or shorter prompts"
            ) from error
        yield from zip(batch, measures, strict=True)


def _batches(lengths: Sequence[int], budget: int, switch: int | None) -> Iterator[list[int]]:
    """Prompts of like length, the longest first, as many as fit when padded to the longest.

    Those longer than ``switch`` are apart, since they change how the whole batch is read.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    n_long = 0 if switch is None else sum(length > switch for length in lengths)
    for group in (order[:n_long], order[n_long:]):
        while group:
            n = max(1, budget // lengths[group[0]])
            yield group[:n]
            group = group[n:]


class _Model:
    """A loaded model whose layers can hand out recorded outputs."""

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self.layers = loaded.handle.layers()
        text = loaded.model.config.get_text_config()
        # Gemma 3n's later layers read keys of earlier ones, which must then run.
        self.shares = not getattr(text, "num_kv_shared_layers", 0)

    def measure(
        self, prompts: Sequence[np.ndarray], advance: Callable[[int], None]
    ) -> list[PromptMeasures]:
        """The measures of one batch, in its order."""
        n_layers, n = self.loaded.n_layers, len(prompts)
        rows = [torch.from_numpy(ids) for ids in prompts]
        n_prompt = torch.tensor([len(ids) for ids in rows])
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.loaded.device)
        layout = Layout.pad([(len(row), len(row)) for row in rows]).to(self.loaded.device)
        outputs: list[Any] = []
        ratios: list[np.ndarray] = []
        with self._recording(outputs, ratios, n_prompt):
            causal = self._logits(ids, layout, CAUSAL, n_prompt).log_softmax(-1)
        advance(n)
        kl, agrees = np.zeros((n, n_layers + 1)), np.ones((n, n_layers + 1))  # at L it is causal
        for first in range(n_layers):
            # Layers below hand out what they gave before instead of computing it again.
            below = zip(self.layers[: first if self.shares else 0], outputs)
            with replaced_forwards({layer: partial(_recorded, output) for layer, output in below}):
                logits = self._logits(ids, layout, open_from(first), n_prompt)
            kl[:, first], agrees[:, first] = _distance(causal, logits)
            advance(n)
        sink_kl, sink_agrees = _distance(causal, self._logits(ids, layout, SINK, n_prompt))
        advance(n)
        attention = self._attention_to_first(ids, layout, n_prompt)
        advance(n)
        ratio = np.stack(ratios, axis=1)
        return [
            PromptMeasures(
                n_tokens=int(n_prompt[i]),
                kl=kl[i],
                agrees=agrees[i],
                sink_kl=float(sink_kl[i]),
                sink_agrees=float(sink_agrees[i]),
                first_norm=ratio[i],
                to_first=attention[i],
            )
            for i in range(n)
        ]

    def _logits(
        self, ids: torch.Tensor, layout: Layout, regime: Regime, n_prompt: torch.Tensor
    ) -> torch.Tensor:
        """float32 ``[prompt, vocabulary]`` behind each prompt's last token."""
        rows = (torch.arange(len(ids)) * ids.shape[1] + n_prompt - 1).to(ids.device)
        with self.loaded.handle.use(regime, layout), gather_before_head(self.loaded.model, rows):
            logits = self.loaded.model(
                input_ids=ids, position_ids=layout.position, use_cache=False
            ).logits
        return logits.float().view(len(ids), -1)

    @contextmanager
    def _recording(
        self, outputs: list[Any], ratios: list[np.ndarray], n_prompt: torch.Tensor
    ) -> Iterator[None]:
        """Keep each layer's output, and of its input the first token's norm over the median."""

        def keep(_: Any, arguments: Any, named: Any, output: Any) -> None:
            outputs.append(output)
            entering = arguments[0] if arguments else named["hidden_states"]
            ratios.append(_first_over_median(entering, n_prompt))

        with ExitStack() as stack:
            for layer in self.layers:
                hook = layer.register_forward_hook(keep, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _attention_to_first(
        self, ids: torch.Tensor, layout: Layout, n_prompt: torch.Tensor
    ) -> np.ndarray:
        """Causal attention on the first token: ``[prompt, layer]``, the mean over heads and over
        the prompt's other tokens."""
        by_layer: dict[int, np.ndarray] = {}

        def on_layer(module: Any, weights: torch.Tensor, _: Any) -> None:
            to_first = weights[..., 0].float().mean(1).cpu()  # [prompt, query]
            by_layer[module.layer_idx] = np.array(
                [float(row[1:n].mean()) for row, n in zip(to_first, n_prompt.tolist(), strict=True)]
            )

        handle = self.loaded.handle
        with handle.use(CAUSAL, layout), watching(handle, on_layer):
            handle.decoder(input_ids=ids, position_ids=layout.position, use_cache=False)
        return np.stack([by_layer[layer] for layer in sorted(by_layer)], axis=1)


def _recorded(output: Any, *_: Any, **__: Any) -> Any:
    return output


def _distance(causal: torch.Tensor, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """KL(causal || other) in nats and top-1 agreement, each ``[prompt]``, from causal's
    log-probabilities and the other's logits, both ``[prompt, vocabulary]``."""
    other = logits.log_softmax(-1)
    kl = (causal.exp() * (causal - other)).sum(-1).clamp(min=0)  # rounding may fall below 0
    agrees = (causal.argmax(-1) == other.argmax(-1)).float()
    return kl.cpu().double().numpy(), agrees.cpu().double().numpy()


def _first_over_median(hidden: torch.Tensor, n_prompt: torch.Tensor) -> np.ndarray:
    """The first token's norm over the median of the prompt's others': ``[prompt]``."""
    norms = hidden.float().norm(dim=-1).cpu()
    pairs = zip(norms, n_prompt.tolist(), strict=True)
    return np.array([float(row[0] / row[1:n].median().clamp(min=1e-30)) for row, n in pairs])
