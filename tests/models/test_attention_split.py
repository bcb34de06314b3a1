"""sdpa in two passes: no mask for a prefix that needs none, and the same numbers."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import EncodedItem, Encoder
from bidir_core.data.items import Item
from bidir_core.evaluate import evaluate as evaluating
from bidir_core.evaluate import scoring
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.evaluate.scoring import Scorer, plan_scoring
from bidir_core.models import attention, loading
from bidir_core.models import layout as attention_layout
from bidir_core.models.attention import choose_implementation, without_plans
from bidir_core.models.families import (
    FAMILIES,
    tiny_config,
    tiny_loaded,
    tiny_tokenizer,
)
from bidir_core.models.layout import Layout
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe import run_probe
from bidir_core.regimes import parse_regime
from bidir_core.runs.run import Run
from tests.tiny_models import logits as logits_under

SPLITTABLE = [family for family in FAMILIES if family != "gemma2"]
LENGTHS = ((9, 12), (1, 2), (6, 6), (3, 10))  # (prefix, total)
IDS = torch.randint(0, 256, (1, 400), generator=torch.Generator().manual_seed(0))
CUDA = torch.device("cuda")


def splitting(family: str = "llama", split_from: int = 0, **changes: Any) -> LoadedModel:
    """A tiny model that splits prefixes of a few tokens already."""
    loaded = tiny_loaded(family, implementation="split", **changes)
    loaded.handle.split_from = split_from
    return loaded


def logits(loaded: LoadedModel, regime: str, layout: Layout) -> torch.Tensor:
    ids = IDS[:, : layout.shape[1]].expand(layout.shape[0], -1)
    return logits_under(loaded, regime, layout, ids)


REGIMES = ["causal", "bidirectional", "bidirectional:sink=1,layers=1-2", "causal:hide=0,layers=1-"]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", SPLITTABLE)
def test_equals_the_dense_mask(family: str, regime: str) -> None:
    dense, ours = tiny_loaded(family), splitting(family)
    for layout in (Layout.pack(LENGTHS), Layout.pack([(40, 45)]), Layout.pad(LENGTHS)):
        want = logits(dense, regime, layout)
        torch.testing.assert_close(logits(ours, regime, layout), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", SPLITTABLE)
def test_long_prefixes_are_split_and_short_ones_are_not(family, monkeypatch):
    """Two items of the row are split, the others masked; the numbers are those of masks alone."""
    ours, dense, split = splitting(family, 6), tiny_loaded(family), []
    honest = attention._attend_split

    def spy(run: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        split.append(query.shape[2])
        return honest(run, query, *args, **kwargs)

    monkeypatch.setattr(attention, "_attend_split", spy)
    for regime in ("bidirectional", "causal"):
        split.clear()
        result = logits(ours, regime, Layout.pack(LENGTHS))
        want = logits(dense, regime, Layout.pack(LENGTHS))
        torch.testing.assert_close(result, want, rtol=0, atol=1e-4)
        # of 9 and 6 tokens; a window of 4, in the families that have one, is too short for either
        assert set(split) == {12, 6} or (set(split) <= {12, 6} and _window(ours) is not None)


def _window(loaded: LoadedModel) -> int | None:
    return getattr(loaded.model.config.get_text_config(), "sliding_window", None)


@pytest.mark.parametrize("family", SPLITTABLE)
def test_the_probe_goes_both_ways_and_passes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the threshold of real use, which its short sequences would never reach."""
    # A window that holds a short prefix, as those of real models do.
    window = {"sliding_window": 64} if _window(tiny_loaded(family)) is not None else {}
    loaded = tiny_loaded(family, implementation="split", **window)
    attend, ways = attention._attend_split, []
    mask = attention.Plan.mask

    def spied(run: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        ways.append("split")
        return attend(run, query, *args, **kwargs)

    def masked(plan: Any, layer: int, window: Any, dtype: Any, span: Any = None, last: Any = None):
        if span is not None and last is None:
            ways.append("item's mask")
        return mask(plan, layer, window, dtype, span, last)

    monkeypatch.setattr(attention, "_attend_split", spied)
    monkeypatch.setattr(attention.Plan, "mask", masked)
    for regime in ("causal", "bidirectional", "bidirectional:layers=1-1"):
        ways.clear()
        report = run_probe(loaded, regime)
        assert report.passed, report.failures
        assert set(ways) == {"split", "item's mask"}
    assert loaded.handle.split_from == attention.SPLIT_FROM_TOKENS


@pytest.mark.parametrize("where", ["prefix", "continuation"])
def test_the_probe_finds_a_split_that_is_wrong(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silently causal in the long prefixes alone, or leaking between choices behind them."""
    honest = attention._attend_split

    def causal(run: Any, q: Any, k: Any, v: Any, n: int, is_causal: bool, rest: Any, **kw: Any):
        return honest(run, q, k, v, n, True, rest, **kw)

    def leaky(run: Any, q: Any, k: Any, v: Any, n: int, is_causal: bool, rest: Any, **kw: Any):
        return honest(run, q, k, v, n, is_causal, lambda: torch.zeros_like(rest()), **kw)

    broken = causal if where == "prefix" else leaky
    monkeypatch.setattr(attention, "_attend_split", broken)
    assert not run_probe(tiny_loaded(implementation="split"), "bidirectional").passed


@pytest.mark.parametrize("regime", ["causal", "bidirectional"])
def test_a_long_prefix_builds_nothing_of_query_times_key(regime, monkeypatch):
    masks: list[int] = []
    honest = attention_layout.allowed_and_ahead

    def spy(*args: Any, **kwargs: Any) -> Any:
        made = honest(*args, **kwargs)
        masks.append(made[0].numel())
        return made

    monkeypatch.setattr(attention, "allowed_and_ahead", spy)
    n_prefix, n_total = 390, 400
    loaded, layout = splitting(), Layout.pack([(n_prefix, n_total)])
    logits(loaded, regime, layout)
    assert masks == [(n_total - n_prefix) * n_total]
    masks.clear()
    logits(tiny_loaded(implementation="sdpa"), regime, layout)
    assert masks == [n_total * n_total]


def test_a_dial_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_attend_split", None)
    logits(splitting(), "bidirectional:sink=1", Layout.pack(LENGTHS))
    # a window of 4 tokens, and a prefix of 9
    logits(splitting("mistral"), "bidirectional", Layout.pack([(9, 12)]))
    # short prefixes, as they are in real use
    logits(tiny_loaded(implementation="split"), "bidirectional", Layout.pack(LENGTHS))


def test_soft_caps_and_sinks_are_refused() -> None:
    for family in ("gemma2", "gpt_oss"):
        with pytest.raises(UserError, match=rf"'split' drops.*{family}.*--attn eager"):
            choose_implementation(tiny_config(family), "split")


def test_gradients_are_those_of_the_dense_mask() -> None:
    layout, gradients = Layout.pack([(40, 45), (3, 9)]), []
    for implementation in ("sdpa", "split"):
        loaded = tiny_loaded(implementation=implementation)
        loaded.handle.split_from = 0
        loaded.model.requires_grad_(True)
        with loaded.handle.use(parse_regime("bidirectional"), layout):
            output = loaded.model(
                input_ids=IDS[:, :54], position_ids=layout.position, use_cache=False
            )
            output.logits.square().mean().backward()
        gradients.append(loaded.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


# An evaluation on a GPU: padded rows for short items, packed ones for long


def encode(contexts: Iterable[str]) -> list[EncodedItem]:
    choices = (" in the night", " in May", " and fell")
    items = [Item("own", n, str(n), 0, (text,), choices) for n, text in enumerate(contexts)]
    return Encoder(tiny_tokenizer()).encode(items)


@pytest.mark.parametrize("regime", ["causal", "bidirectional", "bidirectional:sink=1"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_scores_of_long_and_short_items(family, regime, monkeypatch):
    """The batch plan of a GPU, run on the CPU, against masks in padded rows throughout."""
    monkeypatch.setattr(scoring, "SPLIT_FROM_TOKENS", 20)
    encoded = encode("the river rose " * times for times in (1, 9, 2, 7, 1))
    log_likelihoods = {}
    for implementation in ("sdpa", "split"):
        loaded = tiny_loaded(family, implementation=implementation)
        loaded.handle.split_from = 20
        plan = plan_scoring(
            encoded,
            regime=parse_regime(regime),
            device=CUDA,
            batch_tokens=150,
            implementation=implementation,
        )
        assert sorted(i for batch in plan.batches for i in batch.items) == list(range(5))
        kinds = {i: plan.pads(batch.items) for batch in plan.batches for i in batch.items}
        long_items = {i for i, item in enumerate(encoded) if len(item.prefixes[0]) >= 20}
        assert 0 < len(long_items) < 5
        assert {i for i, padded in kinds.items() if not padded} == (
            long_items if implementation == "split" else set()
        )
        scorer = Scorer(loaded.model, loaded.handle, plan)
        scores = [score for batch in plan.batches for score in scorer.score(batch.items)]
        scores.sort(key=lambda score: score.index)
        log_likelihoods[implementation] = [score.ll for score in scores]
    np.testing.assert_allclose(log_likelihoods["split"], log_likelihoods["sdpa"], atol=2e-4)


def test_auto_is_split_for_an_evaluation_on_a_gpu_alone() -> None:
    llama, gemma2 = tiny_config("llama"), tiny_config("gemma2")
    assert choose_implementation(llama, "auto", "cuda") == "split"
    assert choose_implementation(llama, "sdpa", "cuda") == "sdpa"
    assert choose_implementation(gemma2, "auto", "cuda") == "eager"
    assert [choose_implementation(llama, "auto", on) for on in ("cpu", "mps")] == ["sdpa"] * 2


def test_a_run_as_on_a_gpu_records_what_it_did_and_scores_the_same(
    tiny_folder: Path, own_items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvalConfig(
        model=str(tiny_folder),
        tasks=(str(own_items),),
        regime="bidirectional",
        limit=20,
        device="cpu",
        batch_tokens=400,
        runs_dir=str(tmp_path),
    )
    plain = Run(evaluate(config))
    assert plain.config["attention"] == "sdpa"
    assert "split_from_tokens" not in plain.config
    for module in (scoring, attention):
        monkeypatch.setattr(module, "SPLIT_FROM_TOKENS", 60)
    on_gpu = partial(choose_implementation, device_type="cuda")
    monkeypatch.setattr(
        loading, "choose_implementation", lambda config, attn, _: on_gpu(config, attn)
    )
    kinds = []

    def as_on_gpu(encoded: Any, *, device: Any, **settings: Any) -> Any:
        plan = plan_scoring(encoded, device=CUDA, **settings)
        kinds.extend(plan.pads(batch.items) for batch in plan.batches)
        return plan

    monkeypatch.setattr(evaluating, "plan_scoring", as_on_gpu)
    split = Run(evaluate(config))
    assert set(kinds) == {True, False}
    assert (split.config["attention"], split.config["split_from_tokens"]) == ("split", 60)
    assert split.probe["passed"]
    assert split.probe["implementation"] == "split"
    ours, theirs = (run.items(["doc_id", "ll"]).sort_values("doc_id") for run in (split, plain))
    np.testing.assert_allclose(np.stack(ours["ll"]), np.stack(theirs["ll"]), atol=1e-3)


@pytest.mark.parametrize("kernel", ["MATH", "FLASH_ATTENTION", "CUDNN_ATTENTION"])
def test_grouped_heads_stay_where_a_fast_kernel_would_take_them(kernel, monkeypatch):
    """The math kernel would take them too, with all of query times key."""
    asked = []

    def choice(*_: Any, enable_gqa: bool) -> int:
        asked.append(enable_gqa)
        return getattr(SDPBackend, kernel).value

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    on_gpu = SimpleNamespace(device=CUDA)
    groups = partial(attention._takes_groups, key=None, value=None, mask=None, dropout=0.0)
    assert groups(on_gpu, is_causal=False) is (kernel != "MATH")
    assert asked == [True]
    assert groups(torch.zeros(1), is_causal=False)


def test_the_kernel_that_plans_for_each_shape_is_left_out_while_scoring() -> None:
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    assert enabled()
    with without_plans(CUDA, 300):
        assert not enabled()
        with without_plans(CUDA):
            assert not enabled()
        assert not enabled()
    assert enabled()
    with without_plans(torch.device("cpu"), 300):
        assert enabled()
    with without_plans(CUDA, attention.CUDNN_FROM_TOKENS):  # a plan is worth it
        assert enabled()
    with pytest.raises(RuntimeError), without_plans(CUDA):
        raise RuntimeError
    assert enabled()
