"""One model spread over the processes of a launch (FSDP2), where it does not fit on each.

``accelerate launch --use_fsdp --fsdp_version 2 ...`` asks for it. Every process then holds a slice
of each weight, of its gradient and of its moments, and layers are put together just before they
are needed, one at a time. Checkpoints and the final model are written whole, by the main process:
a run goes on with any number of processes, with or without FSDP.

Everything here is collective: all processes must call it, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from bidir_core.errors import UserError
from bidir_core.launched import launched

if TYPE_CHECKING:
    from bidir_core.training.config import FinetuneConfig
    from bidir_core.training.student import Student

T = TypeVar("T")
RUN = "run_whole"


def wanted(config: FinetuneConfig) -> bool:
    """Whether this launch asks for FSDP; UserError for what it asks for and cannot have."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    for variable, flag, needed, why in (
        ("FSDP_VERSION", "--fsdp_version", "2", "the older FSDP is not supported"),
        ("FSDP_OFFLOAD_PARAMS", "--fsdp_offload_params", "false", "weights stay on the devices"),
        (
            "FSDP_ACTIVATION_CHECKPOINTING",
            "--fsdp_activation_checkpointing",
            "false",
            "--gradient-checkpointing does that",
        ),
    ):
        given = os.environ.get(variable, needed).lower()
        if given != needed:
            raise UserError(f"{flag} {given}: give {needed}; {why}")
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
    inside = {id(p) for layer in _layers(base) for p in layer.parameters()}
    rest = {p for p in base.model.parameters() if id(p) not in inside}
    for parameter in rest:
        parameter.data = parameter.data.to(device)
    _shard(base, device, rest)


def _shard(student: Student, device: torch.device, whole: set[nn.Parameter]) -> None:
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
    for layer in _layers(student):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    # Decoder and head are called one by one in training. A method that calls what it is given
    # lets that happen as if in the model's own forward pass, where FSDP gathers weights.
    setattr(model, RUN, lambda work: work())
    register_fsdp_forward_method(model, RUN)


def _layers(student: Student) -> list[nn.Module]:
    decoder = student.decoder
    found = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    return list(found) if found is not None else []


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
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor | None] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if trained_only and not parameter.requires_grad:
            continue
        if id(parameter) not in seen:
            one = whole(parameter.detach())
            seen[id(parameter)] = one.cpu() if keep else None
        if (kept := seen[id(parameter)]) is not None:
            found[name] = kept
    if keep and not trained_only:  # buffers, which are not spread
        found |= {n: b.cpu() for n, b in model.state_dict().items() if n not in found}
    return found
