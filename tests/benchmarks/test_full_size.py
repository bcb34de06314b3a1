"""The full-size benchmark, run really on its tiny shape; what it compares with is what it says."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import full_size
from benchmarks.full_eval import full_attention
from benchmarks.full_shape import Clock, attending, build
from bidir_core.models.families import tiny_tokenizer
from bidir_core.models.layout import Layout
from bidir_core.regimes import BIDIRECTIONAL, CAUSAL
from tests.bench_line import benchmark_line

CPU = torch.device("cpu")


@pytest.fixture
def line(tmp_path, own_items):
    more = """--limit 3 --prefill-tokens 40 --steps 2
        --micro-tokens 512 --peer-batch-sizes 2 --peer-micro-samples 2 --attn sdpa,split"""
    return benchmark_line(tmp_path, own_items, more)


def read(out) -> dict:
    return json.loads(out.with_suffix(".json").read_text())


def test_every_part_writes_what_it_measured(line) -> None:
    words, out = line
    full_size.main(words)
    results = read(out)
    rows = {(row["part"], row["what"]): row for row in results["rows"]}
    assert {part for part, _ in rows} == set(full_size.PARTS)
    for key in (
        ("prefill", "plain full attention, the model's own kernel"),
        ("prefill", "split, bidirectional"),
        ("eval", "sdpa, bidirectional"),
        ("eval", "split, causal"),
        ("eval", "lm-eval, batch 2"),
        ("train", "3B full, sdpa"),
        ("train", "HF Trainer full, causal"),
        ("lora", "3B lora, sdpa"),
        ("lora", "best of ours against HF Trainer"),
    ):
        row = rows[key]
        assert "skipped" not in row
        assert all(value >= 0 for value in row.values() if isinstance(value, int | float))
    assert results["matmul_tflops"] > 0

    # Again, one part, and its time is over: the other parts' numbers stay.
    full_size.main([*words, "--parts", "prefill", "--part-seconds", "0"])
    after = read(out)["rows"]
    assert [r for r in after if r["part"] != "prefill"] == [
        r for r in results["rows"] if r["part"] != "prefill"
    ]
    assert all(row["skipped"] for row in after if row["part"] == "prefill")


def test_the_shape_is_the_published_one() -> None:
    model = build("ministral3-3b", [], torch.device("meta"), torch.bfloat16).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.43e9, rel=2e-3)


def test_plain_full_attention_is_the_bidirectional_prefill() -> None:
    """The yardstick of a prefill computes the same thing, and is not silently causal."""
    loaded = attending(build("tiny", tiny_tokenizer(), CPU, torch.float32), "split")
    loaded.handle.split_from = 0
    ids, layout = torch.arange(30)[None], Layout.pack([(30, 30)])

    @torch.no_grad()
    def hidden() -> torch.Tensor:
        return loaded.handle.decoder(
            input_ids=ids, position_ids=layout.position, use_cache=False
        ).last_hidden_state

    with loaded.handle.use(BIDIRECTIONAL, layout):
        ours = hidden()
    with loaded.handle.native():
        causal = hidden()
        with full_attention(loaded):
            plain = hidden()
        assert torch.equal(hidden(), causal)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4)
    assert (plain - causal).abs().max() > 1e-4


def test_what_fails_is_a_row_and_the_next_is_measured(monkeypatch) -> None:
    from benchmarks import full_train

    rows: list[dict] = []

    def attempt(work) -> list[dict]:
        add = lambda part, what, **row: rows.append(row)  # noqa: E731
        return full_train._attempt(add, "train", "x", Clock(9), CPU, work, checkpointing=False)

    def broken(checkpointing: bool) -> dict:
        raise RuntimeError("no kernel | for\nthis")

    def large(checkpointing: bool) -> dict:
        raise torch.OutOfMemoryError("too much")

    assert attempt(broken) == attempt(large) == []
    assert rows[0]["skipped"] == "failed: RuntimeError: no kernel / for this"
    assert rows[1]["skipped"].startswith("out of memory")
    assert attempt(lambda _: {"tokens_per_second": 3})[0]["layers_computed_twice"] == "no"


def test_parts_and_steps_are_checked(capsys) -> None:
    for words in (["--parts", "eval,tea"], ["--steps", "3", "--warm-up", "3"]):
        with pytest.raises(SystemExit) as refused:
            full_size.parse(words)
        assert refused.value.code == 2
    assert "--parts tea: choose from prefill, eval" in capsys.readouterr().err


def test_ways_to_compute_are_compared(tmp_path, capsys, monkeypatch) -> None:
    from benchmarks import gpu_check

    words = ["--device", "cpu", "--out", str(tmp_path / "check"), "--only"]
    assert gpu_check.main([*words, "training"]) == 0
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert [row["check"] for row in rows] == [
        f"training {kind}" for kind in ("none", "reduce-overhead", "default")
    ]
    assert rows[1]["losses"] == pytest.approx(rows[0]["losses"], abs=1e-3)
    # Something else than was asked for is found out.
    monkeypatch.setattr(gpu_check, "small", broken_small(gpu_check.small))
    assert gpu_check.main([*words, "attention split"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert gpu_check.main([*words, "gradients"]) == 2
    assert "no such check on cpu; there are: attention" in capsys.readouterr().err


def broken_small(small):
    """Whatever is asked of split, it is causal."""

    def build_small(head_dim, dtype, device, attn):
        loaded = small(head_dim, dtype, device, attn)
        if attn != "split":
            return loaded
        use = loaded.handle.use
        loaded.handle.use = lambda regime, *rest: use(CAUSAL, *rest)
        return loaded

    return build_small
