"""sdpa in two passes: no mask for a prefix that needs none, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bidir_core import attention
from bidir_core.attention import choose_implementation
from bidir_core.errors import UserError
from bidir_core.layout import Layout
from bidir_core.probe import run_probe
from bidir_core.regimes import parse_regime
from tests.tiny_models import FAMILIES, TinyLoaded, tiny_config, tiny_loaded

SPLITTABLE = [family for family in FAMILIES if family != "gemma2"]
LENGTHS = ((9, 12), (1, 2), (6, 6), (3, 10))  # (prefix, total)
IDS = torch.randint(0, 256, (1, 400), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(loaded: TinyLoaded, regime: str, layout: Layout) -> torch.Tensor:
    ids = IDS[:, : layout.shape[1]].expand(layout.shape[0], -1)
    with loaded.handle.use(parse_regime(regime), layout):
        return loaded.model(input_ids=ids, position_ids=layout.position, use_cache=False).logits


@pytest.mark.parametrize("regime", ["causal", "bidirectional", "bidirectional:sink=1,layers=1-2"])
@pytest.mark.parametrize("family", SPLITTABLE)
def test_equals_the_dense_mask(family: str, regime: str) -> None:
    dense, ours = tiny_loaded(family), tiny_loaded(family, implementation="split")
    for layout in (Layout.pack(LENGTHS), Layout.pack([(40, 45)]), Layout.pad(LENGTHS)):
        want = logits(dense, regime, layout)
        torch.testing.assert_close(logits(ours, regime, layout), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_the_probe_passes(family: str) -> None:
    for regime in ("causal", "bidirectional", "bidirectional:layers=1-1"):
        report = run_probe(tiny_loaded(family, implementation="split"), regime)
        assert report.passed, report.failures


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gave back."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        made = function(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else (made,)
        sizes = [one.numel() for one in tensors if isinstance(one, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


@pytest.mark.parametrize("regime", ["causal", "bidirectional"])
def test_a_long_prefix_builds_nothing_of_query_times_key(
    regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spy on masks, and on the size of everything that is computed."""
    masks: list[int] = []
    honest = attention.allowed_and_ahead

    def spy(*args: Any, **kwargs: Any) -> Any:
        made = honest(*args, **kwargs)
        masks.append(made[0].numel())
        return made

    monkeypatch.setattr(attention, "allowed_and_ahead", spy)
    n_prefix, n_total = 390, 400
    loaded, layout = tiny_loaded(implementation="split"), Layout.pack([(n_prefix, n_total)])
    with Largest() as seen:
        logits(loaded, regime, layout)
    assert masks == [(n_total - n_prefix) * n_total]
    assert seen.numel < n_total * n_total  # 400 x 260 logits are the largest there is
    # Both ways of looking can tell: the ordinary way builds one.
    masks.clear()
    with Largest() as seen:
        logits(tiny_loaded(implementation="sdpa"), regime, layout)
    assert masks == [n_total * n_total]
    assert seen.numel >= n_total * n_total


def test_a_prompt_alone_builds_no_mask_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "allowed_and_ahead", None)
    loaded = tiny_loaded(implementation="split")
    assert logits(loaded, "bidirectional", Layout.pack([(40, 40)])).isfinite().all()


def test_a_dial_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.attention_split, "attend", None)
    logits(tiny_loaded(implementation="split"), "bidirectional:sink=1", Layout.pack(LENGTHS))
    # a window of 4 tokens, and a prefix of 9
    every = tiny_loaded("mistral", implementation="split")
    logits(every, "bidirectional", Layout.pack([(9, 12)]))


def test_gradients_are_those_of_the_dense_mask() -> None:
    layout, found = Layout.pack([(40, 45), (3, 9)]), []
    for implementation in ("sdpa", "split"):
        loaded = tiny_loaded(implementation=implementation)
        loaded.model.requires_grad_(True)
        with loaded.handle.use(parse_regime("bidirectional"), layout):
            output = loaded.model(
                input_ids=IDS[:, :54], position_ids=layout.position, use_cache=False
            )
            output.logits.square().mean().backward()
        found.append(loaded.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_soft_caps_and_sinks_are_refused() -> None:
    for family in ("gemma2", "gpt_oss"):
        with pytest.raises(UserError, match=rf"'split' drops.*{family}.*--attn eager"):
            choose_implementation(tiny_config(family), "split")
