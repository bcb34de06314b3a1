"""Fused norms, gates and rotary embeddings: the model's own numbers, or the model's own operations."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bidir_core import fused
from bidir_core.attention import install
from bidir_core.layout import Layout
from bidir_core.regimes import BIDIRECTIONAL
from tests.tiny_models import FAMILIES, tiny_loaded

LENGTHS = [(5, 9), (3, 4)]
IDS = torch.arange(18).reshape(2, 9) * 5 % 90 + 3


def logits(loaded: Any) -> torch.Tensor:
    layout = Layout.pad(LENGTHS)
    with torch.no_grad(), loaded.handle.use(BIDIRECTIONAL, layout):
        return loaded.model(input_ids=IDS, position_ids=layout.position, use_cache=False).logits


def scatter_weights(model: nn.Module) -> None:
    """A new model's norms all weigh one, under which different rules agree."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_gives_its_own_logits(family: str, dtype: torch.dtype) -> None:
    loaded = tiny_loaded(family)
    scatter_weights(loaded.model)
    loaded.model.to(dtype)
    plain = logits(loaded)
    running = fused.fuse(loaded.model)
    assert "rotary" not in running  # no Triton kernels on a CPU
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        logits(loaded), plain, atol=8 * eps * float(plain.abs().max()), rtol=0
    )
    fused.restore(loaded.model)
    assert torch.equal(logits(loaded), plain)


def test_which_norms_are_fused() -> None:
    """Gemma's weights are offsets from one; OLMo 2 rounds after its weights, not before."""

    def norms(family: str, dtype: torch.dtype = torch.bfloat16) -> int:
        model = tiny_loaded(family).model.to(dtype)
        fused.fuse(model)
        kinds = [type(m).__name__ for m in model.modules() if "forward" in vars(m)]
        return sum(kind.endswith("RMSNorm") for kind in kinds)

    assert norms("llama") == 2 * tiny_loaded("llama").n_layers + 1
    assert norms("gemma3") == norms("olmo2") == 0


def test_a_copy_has_weights_of_its_own() -> None:
    loaded = tiny_loaded("llama")
    fused.fuse(loaded.model)
    before = logits(loaded)
    twin = copy.deepcopy(loaded.model)
    scatter_weights(loaded.model)
    norm = next(module for name, module in twin.named_modules() if name.endswith("norm"))
    assert norm.forward.__self__ is norm
    assert not torch.equal(logits(loaded), before)
    copied = SimpleNamespace(model=twin, handle=install(twin, "sdpa"))
    assert torch.equal(logits(copied), before)


def test_gradients_go_through_fused_norms() -> None:
    loaded = tiny_loaded("llama")
    loaded.model.requires_grad_(True)
    layout = Layout.pad(LENGTHS)
    found = []
    for change in (fused.restore, fused.fuse):
        change(loaded.model)
        loaded.model.zero_grad()
        with loaded.handle.use(BIDIRECTIONAL, layout):
            out = loaded.model(input_ids=IDS, position_ids=layout.position, use_cache=False)
        out.logits.square().sum().backward()
        found.append([p.grad.clone() for p in loaded.model.parameters()])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_same_numbers_or_not() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(4000, generator=generator)
    rounded = exact.bfloat16()
    one_off = rounded.clone()
    one_off[7] = torch.nextafter(rounded[7], rounded.new_tensor(100.0))
    assert fused.same(rounded, rounded)
    assert fused.same(one_off, rounded)
    assert not fused.same((exact * 1.002).bfloat16(), rounded)  # rounded elsewhere, everywhere
    assert not fused.same(rounded + 1, rounded)
    assert not fused.same(rounded, rounded.float())
    assert not fused.same(rounded * float("nan"), rounded)


def test_rotary_embeddings_of_a_family_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is the family's: fused once, however many models, and restored by any of them."""
    from transformers.models.llama import modeling_llama

    own = modeling_llama.apply_rotary_pos_emb
    models = [tiny_loaded("llama").model for _ in range(2)]
    monkeypatch.setattr(fused, "_rotary_agrees", lambda *_: True)
    assert "rotary" in fused.fuse(models[0])
    first = modeling_llama.apply_rotary_pos_emb
    assert first is not own
    assert "rotary" in fused.fuse(models[1])
    assert modeling_llama.apply_rotary_pos_emb is first
    q, cos = torch.randn(1, 2, 3, 8), torch.randn(1, 3, 8)
    for ours, theirs in zip(first(q, q, cos, cos), own(q, q, cos, cos)):  # not on a GPU: its own
        assert torch.equal(ours, theirs)
    fused.restore(models[1])
    assert modeling_llama.apply_rotary_pos_emb is own
    fused.restore(models[0])


def test_a_check_that_fails_to_run_leaves_the_model_alone() -> None:
    def broken(_: Any) -> bool:
        raise RuntimeError("no such kernel")

    assert not fused._holds(broken, SimpleNamespace())
