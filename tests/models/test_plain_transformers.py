"""The documented way to use a repaired checkpoint without this package is run as it is printed."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bidir_core.explain.generate import Sampling, generate
from bidir_core.models import loading
from bidir_core.models.families import WINDOW
from bidir_core.train.config import FinetuneConfig
from bidir_core.train.finetune import run_finetune
from tests.tiny_models import save_tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "GENERATE.md"


def snippet() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "bidir_core" not in code
    return code


@pytest.fixture(scope="module", params=["llama-full", "llama-lora", "gemma3-full"])
def tuned(request, tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model and a short 3B fine-tune of it."""
    family, method = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    base = save_tiny_model(folder / "base", family)
    samples = folder / "samples.jsonl"
    lines = [{"prompt": f"what is {i}?", "response": f" it is {i * 7}"} for i in range(24)]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = {"model": str(base), "data": str(samples), "runs_dir": str(folder / "runs")}
    size = {"lr": 5e-3, "steps": 6, "batch_samples": 4, "decontaminate": False, "device": "cpu"}
    run = run_finetune(FinetuneConfig(objective="3B", method=method, **paths, **size))
    return base, run


def run_snippet(final: Path, **replaced: str) -> dict:
    code = re.sub(r'^final = ".*"$', f"final = {str(final)!r}", snippet(), flags=re.MULTILINE)
    assert str(final) in code
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    space: dict = {}
    exec(compile(code, "docs/GENERATE.md", "exec"), space)
    return space


def test_the_documented_lines_give_the_tokens_that_generate_gives(tuned, capsys):
    base, run = tuned
    names = run_snippet(run / "final")
    ids, new_ids = names["ids"][0].tolist(), names["new_ids"]
    assert len(ids) > WINDOW
    loaded = loading.load(str(base), checkpoint=str(run), device="cpu", dtype="float32")
    ours = generate(loaded, ids, "bidirectional", Sampling(16))
    assert new_ids == ours.token_ids
    causal = generate(loaded, ids, "causal", Sampling(16))
    assert ours.steps[0].top != causal.steps[0].top
    plain = AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32).eval()
    silent = plain.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
    assert silent[0, len(ids) :].tolist() == causal.token_ids, "generate() alone reads causally"


def test_the_documented_sink_line_is_that_regime(tuned, capsys):
    base, run = tuned
    made = run_snippet(
        run / "final", **{"# mask[..., 0, 1:] = blind  ": "mask[..., 0, 1:] = blind  "}
    )
    loaded = loading.load(str(base), checkpoint=str(run), device="cpu", dtype="float32")
    ours = generate(loaded, made["ids"][0].tolist(), "bidirectional:sink=1", Sampling(16))
    assert made["new_ids"] == ours.token_ids
