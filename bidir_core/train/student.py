"""The model in training: hidden states under a regime, and logits at chosen positions only."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bidir_core.common.errors import UserError
from bidir_core.common.process import launched
from bidir_core.evaluate.scoring import gather_before_head
from bidir_core.models import fused
from bidir_core.models.attention import Handle, install, text_decoder
from bidir_core.regimes import Regime
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.packing import TrainBatch


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
        ids, layout = batch.ids[:1], batch.layout.map(lambda rows: rows[:1])
        first_row = batch._replace(ids=ids, layout=layout, head=head)
        with self.handle.use(regime, layout):
            with same_luck(ids.device):
                own_logits = within(self.model, lambda: self.logits(self.hidden(first_row))).float()
            with same_luck(ids.device), gather_before_head(self.model, head):
                model_logits = self.model(
                    input_ids=ids, position_ids=layout.position, use_cache=False
                ).logits[0]
        difference = float((own_logits - model_logits.float()).abs().max())
        tolerance = max(1e-3, 4 * torch.finfo(model_logits.dtype).eps)
        if not difference <= tolerance * max(1.0, float(model_logits.abs().max())):
            raise UserError(
                f"{type(self.model).__name__} changes its logits behind the output head in a way "
                f"that training here does not know (difference {difference:.3g}); it cannot be "
                "fine-tuned with this program"
            )
        return difference


@contextmanager
def same_luck(device: torch.device) -> Iterator[None]:
    """Every such block draws the same dropout, and leaves torch's random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def compile_layers(student: Student) -> None:
    """Compile each decoder layer in place (torch.compile); one compilation serves them all.

    Attention stays out of it: which mask is in force changes with every batch, and a compiled
    layer would have to check that each time, or be compiled again.
    """
    name = f"bidir_{student.handle.implementation}"
    attend = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(attend, "_torchdynamo_disable"):
        AttentionInterface.register(name, torch.compiler.disable(attend))
    fused.restore(student.model)  # torch.compile fuses plain operations better
    for layer in student.handle.layers():
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
    decoder_names = {name.rsplit(".", 1)[-1] for name, in_decoder in names if in_decoder}
    other_names = {name.rsplit(".", 1)[-1] for name, in_decoder in names if not in_decoder}
    # Short names where they are unambiguous; a vision tower may use the same ones.
    targets = sorted(decoder_names)
    if decoder_names & other_names:
        targets = [name for name, in_decoder in names if in_decoder]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in decoder.modules()),
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


# One model spread over the processes of a launch (FSDP2), where it does not fit on each.

T = TypeVar("T")
RUN = "run_whole"


def wanted(config: FinetuneConfig) -> bool:
    """Whether this launch asks for FSDP; UserError for what it asks for and cannot have."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    for variable, flag, needed, reason in (
        ("FSDP_VERSION", "--fsdp_version", "2", "the older FSDP is not supported"),
        ("FSDP_OFFLOAD_PARAMS", "--fsdp_offload_params", "false", "weights stay on the devices"),
        (
            "FSDP_ACTIVATION_CHECKPOINTING",
            "--fsdp_activation_checkpointing",
            "false",
            "--gradient-checkpointing does that",
        ),
    ):
        value = os.environ.get(variable, needed).lower()
        if value != needed:
            raise UserError(f"{flag} {value}: give {needed}; {reason}")
    if config.compile not in (False, "none"):
        raise UserError("--compile does not go with FSDP; leave one of them out")
    # Otherwise transformers leaves the weights of all but one process empty, to be filled later.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return launched() > 1


def shard(student: Student, device: torch.device) -> None:
    """Spread a student's weights over the processes, layer by layer; in place."""
    from torch.distributed.fsdp import FSDPModule

    _shard(student, device, set())
    for module in student.model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the whole step's tokens already: gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def shard_frozen(base: Student, device: torch.device) -> None:
    """The same for a model that only predicts: its embeddings and head stay whole."""
    layer_ids = {id(p) for layer in base.handle.layers() for p in layer.parameters()}
    unsharded = {p for p in base.model.parameters() if id(p) not in layer_ids}
    for parameter in unsharded:
        parameter.data = parameter.data.to(device)
    _shard(base, device, unsharded)


def _shard(student: Student, device: torch.device, unsharded: set[nn.Parameter]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    model = student.model
    mesh = init_device_mesh(device.type, (launched(),))
    # bfloat16 gradients of many processes are added up in float32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for layer in student.handle.layers():
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=unsharded)
    # Decoder and head are called one by one in training. A method that calls what it is given
    # lets that happen as if in the model's own forward pass, where FSDP gathers weights.
    setattr(model, RUN, lambda work: work())
    register_fsdp_forward_method(model, RUN)


def within(model: Any, work: Callable[[], T]) -> T:
    """Run ``work``, which uses parts of a model, with that model's weights in their place."""
    run = getattr(model, RUN, None)
    return work() if run is None else run(work)


def settle(model: nn.Module) -> None:
    """Let every process hold its own slices again: a forward pass may leave weights whole."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A spread tensor put together; any other as it is."""
    put_together: Any = getattr(tensor, "full_tensor", None)
    return put_together() if put_together is not None else tensor


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This process's slice of a spread tensor, in place; any other as it is."""
    local: Any = getattr(tensor, "to_local", None)
    return local() if local is not None else tensor


def spread_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, spread as ``like`` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    # Every process has read the whole: nothing need be sent.
    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def gathered(
    model: nn.Module, *, keep: bool, trained_only: bool = False
) -> dict[str, torch.Tensor]:
    """The model's weights, whole and on the CPU, by name; nothing where ``keep`` is false.

    A weight that has two names (a tied head) is one tensor under both. ``trained_only``: of an
    adapter, without the model that it belongs to.
    """
    settle(model)
    weights: dict[str, torch.Tensor] = {}
    by_id: dict[int, torch.Tensor | None] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if trained_only and not parameter.requires_grad:
            continue
        if id(parameter) not in by_id:
            full = whole(parameter.detach())
            by_id[id(parameter)] = full.cpu() if keep else None
        if (weight := by_id[id(parameter)]) is not None:
            weights[name] = weight
    if keep and not trained_only:  # buffers, which are not spread
        weights |= {n: b.cpu() for n, b in model.state_dict().items() if n not in weights}
    return weights
