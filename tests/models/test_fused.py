"""Fused norms, gates and rotary embeddings: the model's own numbers, or the model's own operations."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bidir_core import models
from bidir_core.models import fused
from bidir_core.models.attention import install
from bidir_core.models.families import FAMILIES, tiny_loaded
from bidir_core.models.layout import Layout
from bidir_core.regimes import BIDIRECTIONAL
from tests.tiny_models import logits as logits_under

LENGTHS = [(5, 9), (3, 4)]
IDS = torch.arange(18).reshape(2, 9) * 5 % 90 + 3


def logits(loaded: Any) -> torch.Tensor:
    return logits_under(loaded, "bidirectional", Layout.pad(LENGTHS), IDS)


def scatter_weights(model: nn.Module) -> None:
    """A new model's norms all weigh one, under which different rules agree."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


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
    gradients = []
    for change in (fused.restore, fused.fuse):
        change(loaded.model)
        loaded.model.zero_grad()
        with loaded.handle.use(BIDIRECTIONAL, layout):
            out = loaded.model(input_ids=IDS, position_ids=layout.position, use_cache=False)
        out.logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in loaded.model.parameters()])
    for plain, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


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


def forget_all() -> None:
    fused._kernels.cache_clear()
    fused._attends.cache_clear()
    for family, known in fused._ROTARY.items():
        family.apply_rotary_pos_emb = known.own
    fused._ROTARY.clear()


@pytest.fixture(autouse=True)
def nothing_is_known() -> Iterator[None]:
    """Neither from other tests nor for them."""
    forget_all()
    yield
    forget_all()


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' rules in plain torch, and every tensor as if it lay on a GPU."""

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    def norm_times(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        hidden = x.float()
        scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)
        return weight * (hidden * scale).to(x.dtype)

    def attend(q: Any, k: Any, v: Any, mask: torch.Tensor, scale: float) -> torch.Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2)).float() * scale + mask.float()
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)

    kernels = SimpleNamespace(
        attend=attend,
        norm_times=norm_times,
        rotate=rotate,
        can_rotate=lambda x, cos, sin: (cos.shape[-1], cos.dtype) == (x.shape[-1], x.dtype),
        silu_times=lambda gate, up: nn.functional.silu(gate) * up,
        repeat_heads=lambda states, n: states.repeat_interleave(n, dim=1),
        log_sum=lambda logits: logits.float().logsumexp(-1),
    )
    monkeypatch.setitem(sys.modules, "bidir_core.models.fused_kernels", kernels)  # type: ignore[arg-type]
    # Where the real module was imported before, "from bidir_core.models import" finds it here.
    monkeypatch.setattr(models, "fused_kernels", kernels, raising=False)
    monkeypatch.setattr(fused, "_on_gpu", lambda _: True)
    monkeypatch.setattr(fused, "WORTH_A_LAUNCH", 0)


def gated(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if n.endswith("mlp") and "forward" in vars(m)]


@pytest.mark.parametrize("where", ["cpu", "as on a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_gives_its_own_logits(
    family: str, dtype: torch.dtype, where: str, request: pytest.FixtureRequest
) -> None:
    if where != "cpu":
        request.getfixturevalue("as_on_gpu")
    loaded = tiny_loaded(family)
    scatter_weights(loaded.model)
    loaded.model.to(dtype)
    theirs = logits(loaded)
    running = fused.fuse(loaded.model)
    if family == "llama":
        assert running == (["norms"] if where == "cpu" else ["gates", "norms", "rotary"])
    most = 8 * torch.finfo(dtype).eps * float(theirs.abs().max())
    torch.testing.assert_close(logits(loaded), theirs, atol=most, rtol=0)
    with fused.plain(loaded.model):
        assert torch.equal(logits(loaded), theirs)
    fused.restore(loaded.model)
    assert torch.equal(logits(loaded), theirs)


@pytest.mark.usefixtures("as_on_gpu")
def test_gates_are_looked_at_one_by_one() -> None:
    """One layer clamps what only wide inputs reach, one has no output weights to show anything by."""
    model = tiny_loaded("llama").model
    first, second = (layer.mlp for layer in model.model.layers[:2])

    class Clamped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.silu(x).clamp(max=6.0)

    second.act_fn = Clamped()
    fused.fuse(model)
    assert "forward" in vars(first)
    assert "forward" not in vars(second)
    fused.restore(model)
    first.act_fn = nn.GELU()
    first.down_proj.weight.data.zero_()
    fused.fuse(model)
    assert gated(model) == ["model.layers.2.mlp", "model.layers.3.mlp"]
    fused.restore(model)


@pytest.mark.usefixtures("as_on_gpu")
def test_rotary_embeddings_of_a_family_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is the family's: fused once, however many models, and restored by any of them."""
    from transformers.models.llama import modeling_llama

    own = modeling_llama.apply_rotary_pos_emb
    asked = []

    def agrees(_: Any, __: Any, dtype: torch.dtype) -> bool:
        asked.append(dtype)
        return dtype is torch.float32

    monkeypatch.setattr(fused, "_rotary_agrees", agrees)
    models = [tiny_loaded("llama").model for _ in range(2)]
    assert "rotary" in fused.fuse(models[0])
    first = modeling_llama.apply_rotary_pos_emb
    assert first is not own
    assert "rotary" in fused.fuse(models[1])
    assert modeling_llama.apply_rotary_pos_emb is first
    assert "rotary" not in fused.fuse(
        models[1].to(torch.bfloat16)
    )  # a format that was not asked yet
    assert asked == [torch.float32, torch.bfloat16]
    fused.restore(models[1])
    assert modeling_llama.apply_rotary_pos_emb is own
    fused.restore(models[0])


@pytest.mark.usefixtures("as_on_gpu")
def test_interleaved_rotary_embeddings_are_left_alone() -> None:
    from transformers.models.cohere import modeling_cohere
    from transformers.models.llama import modeling_llama

    device = torch.device("cpu")
    for family, agrees in ((modeling_cohere, False), (modeling_llama, True)):
        for dtype in (torch.float32, torch.bfloat16):
            assert fused._rotary_agrees(family.apply_rotary_pos_emb, device, dtype) is agrees


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("broken", ["repeat_heads", "log_sum", "attend", None])
def test_a_kernel_that_gives_other_numbers_is_not_used(
    broken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = sys.modules["bidir_core.models.fused_kernels"]
    if broken == "repeat_heads":  # whole heads one after another, not each n times
        wrong = lambda states, n: states.repeat(1, n, 1, 1)  # noqa: E731
        monkeypatch.setattr(kernels, "repeat_heads", wrong)
    if broken == "log_sum":  # one block only
        wrong = lambda logits: logits[:, :4096].float().logsumexp(-1)  # noqa: E731
        monkeypatch.setattr(kernels, "log_sum", wrong)
    if broken == "attend":  # each head of the queries with the next one's keys
        honest = kernels.attend
        wrong = lambda q, k, *rest: honest(q, k.roll(1, 1), *rest)  # noqa: E731
        monkeypatch.setattr(kernels, "attend", wrong)
    with torch.no_grad():
        logits, heads = torch.randn(2, 30), torch.randn(2, 3, 5, 8)
        assert (fused.log_sum(logits) is None) is (broken in ("repeat_heads", "log_sum"))
        assert torch.equal(fused.repeat_heads(heads, 2), heads.repeat_interleave(2, dim=1))
        short = torch.randn(1, 2, 5, 16, dtype=torch.bfloat16)
        mask = torch.zeros(1, 1, 5, 5, dtype=torch.bfloat16)
        assert (fused.attend(short, short, short, mask, None) is None) is (broken == "attend")
    assert fused.attend(short, short, short, mask, None) is None  # gradients are asked for
    assert fused.log_sum(logits) is None  # gradients are asked for
