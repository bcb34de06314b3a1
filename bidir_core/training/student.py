"""The model in training: hidden states under a regime, and logits at chosen positions only."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bidir_core import fused
from bidir_core.attention import Handle, install, text_decoder
from bidir_core.errors import UserError
from bidir_core.layout import Layout
from bidir_core.regimes import Regime
from bidir_core.scoring import gather_before_head
from bidir_core.training.packing import TrainBatch
from bidir_core.training.sharding import within


class Student:
    """A causal LM with regimes installed, cut between its decoder and its output head.

    The head runs only where something is predicted, a chunk at a time (see
    ``objectives.in_chunks``), so the decoder is called by itself and what the model does to its
    logits behind the head is repeated here. :meth:`check_head` compares the two on real data.
    """

    def __init__(self, model: Any, handle: Handle):
        self.model, self.handle = model, handle
        self.decoder = text_decoder(model)
        self.head: nn.Module = model.get_output_embeddings()
        text = model.config.get_text_config()
        self.vocabulary: int = text.vocab_size
        self._cap = getattr(text, "final_logit_softcapping", None)  # Gemma 2
        # Granite divides its logits, Cohere multiplies them.
        self._scale = getattr(text, "logit_scale", None) or 1.0
        self._scale /= getattr(text, "logits_scaling", None) or 1.0

    def hidden(self, batch: TrainBatch) -> torch.Tensor:
        """Last hidden states at the positions that predict: ``[n_loss, width]``.

        Call it inside ``handle.use(regime, batch.layout)``, and the backward pass too:
        gradient checkpointing runs the layers again there.
        """
        everywhere = self.everywhere(batch)
        return everywhere.reshape(-1, everywhere.shape[-1])[batch.head]

    def everywhere(self, batch: TrainBatch) -> torch.Tensor:
        """Last hidden states of all tokens: ``[rows, time, width]``."""
        return self.decoder(
            input_ids=batch.ids, position_ids=batch.layout.position, use_cache=False
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model would predict from these hidden states: ``[n, vocabulary]``."""
        logits = self.head(hidden) * self._scale if self._scale != 1.0 else self.head(hidden)
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits

    @torch.no_grad()
    def check_head(self, batch: TrainBatch, regime: Regime) -> float:
        """The largest difference from the model's own logits. UserError if they are not the same."""
        head = batch.head[batch.head < batch.ids.shape[1]]  # the first row is enough
        ids, at = batch.ids[:1], batch.layout
        layout = Layout(at.item[:1], at.position[:1], at.n_prefix[:1], at.exit[:1])
        one = batch._replace(ids=ids, layout=layout, head=head)
        with self.handle.use(regime, layout):
            ours = within(self.model, lambda: self.logits(self.hidden(one))).float()
            with gather_before_head(self.model, head):
                theirs = self.model(
                    input_ids=ids, position_ids=layout.position, use_cache=False
                ).logits[0]
        difference = float((ours - theirs.float()).abs().max())
        tolerance = max(1e-3, 4 * torch.finfo(theirs.dtype).eps)
        if not difference <= tolerance * max(1.0, float(theirs.abs().max())):
            raise UserError(
                f"{type(self.model).__name__} changes its logits behind the output head in a way "
                f"that training here does not know (difference {difference:.3g}); it cannot be "
                "fine-tuned with this program"
            )
        return difference


def compile_layers(student: Student) -> None:
    """Compile each decoder layer in place (torch.compile); one compilation serves them all.

    Attention stays out of it: which mask is in force changes with every batch, and a compiled
    layer would have to check that each time, or be compiled again.
    """
    name = f"bidir_{student.handle.implementation}"
    attend = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(attend, "_torchdynamo_disable"):
        AttentionInterface.register(name, torch.compiler.disable(attend))
    fused.restore(student.model)  # what is written out, it fuses better
    for layer in student.decoder.layers:
        layer.compile()


def frozen_copy(student: Student) -> Student:
    """The base model as it is now, for its predictions: a copy that nothing trains."""
    model = copy.deepcopy(student.model).eval().requires_grad_(False)
    return Student(model, install(model, student.handle.implementation))


def add_lora(model: Any, *, rank: int, alpha: int, dropout: float) -> Any:
    """Wrap ``model`` with LoRA on every linear map of its text decoder's layers (peft)."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    decoder = text_decoder(model)
    inside = {id(module) for module in decoder.modules()}
    names = [
        (name, id(module) in inside)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    ]
    wanted = {name.rsplit(".", 1)[-1] for name, ours in names if ours}
    other = {name.rsplit(".", 1)[-1] for name, ours in names if not ours}
    # Short names where they are unambiguous; a vision tower may use the same ones.
    targets = [name for name, ours in names if ours] if wanted & other else sorted(wanted)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in decoder.modules()),
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)
