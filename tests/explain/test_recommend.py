"""``recommend``: the curve is the model's own, the rule is the stated one, and no label is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidir_core.cli import main
from bidir_core.data.items import Item
from bidir_core.explain import recommend as recommend_module
from bidir_core.explain.configs import RecommendConfig
from bidir_core.explain.recommend import PromptMeasures, measure, read_prompts, summarise
from bidir_core.models.families import tiny_loaded
from bidir_core.models.layout import Layout
from bidir_core.runs.run import Run
from tests.factory import write_lines
from tests.tiny_models import logits

# Full attention; a sliding window in half of the layers; soft caps behind the head; layers that
# are no rotary decoder's.
FAMILIES = ("llama", "qwen2", "gemma2", "gpt2")


def some_prompts(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 250, n) for n in lengths]


def measured(loaded, prompts, **options) -> list[PromptMeasures]:
    return measure(loaded, prompts, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_curve_is_that_of_whole_passes_of_each_prompt_alone(family):
    loaded = tiny_loaded(family)
    prompts, n_layers = some_prompts(7, 3, 12), loaded.n_layers
    for ids, measures in zip(prompts, measured(loaded, prompts), strict=True):
        n = len(ids)
        tokens = torch.from_numpy(ids)[None]
        layout = Layout.pack([(n, n)])

        def predicted(regime, layout=layout, tokens=tokens):
            return logits(loaded, regime, layout, tokens)[0, -1:].double().log_softmax(-1)

        causal = predicted("causal")

        def kl(regime, causal=causal, predicted=predicted):
            return float((causal.exp() * (causal - predicted(regime))).sum(-1).mean())

        curve = [kl(f"bidirectional:layers={a}-{n_layers - 1}") for a in range(n_layers)]
        assert measures.kl == pytest.approx([*curve, 0.0], abs=1e-5)
        assert measures.sink_kl == pytest.approx(kl("bidirectional:sink=1"), abs=1e-5)
        assert measures.kl[0] > 1e-4  # there is something to measure
        # What the last layer computes at prompt tokens reaches no prediction.
        assert measures.kl[-2] == pytest.approx(0, abs=1e-6)
        assert measures.agrees[-2:].tolist() == [1, 1]


def test_a_batch_changes_no_measure():
    loaded = tiny_loaded("llama")
    prompts = some_prompts(9, 4, 6, 13)
    alone = measured(loaded, prompts, batch_tokens=1)
    for batched, single in zip(measured(loaded, prompts), alone, strict=True):
        for name in ("kl", "first_norm", "to_first"):
            assert getattr(batched, name) == pytest.approx(getattr(single, name), abs=1e-5)


def test_outliers_and_attention_are_found_where_they_were_planted():
    loaded = tiny_loaded("llama")
    prompts = [np.concatenate([[255], ids % 200]) for ids in some_prompts(6, 8)]
    mean = loaded.model.model.embed_tokens.weight[:200].norm(dim=-1).mean()
    loaded.model.model.embed_tokens.weight.data[255] *= (
        50 * mean / loaded.model.model.embed_tokens.weight[255].norm()
    )
    (measures, _) = measured(loaded, prompts)
    assert measures.first_norm.shape == measures.to_first.shape == (loaded.n_layers,)
    assert measures.first_norm[0] > 20
    assert summarise([measures])["predictions"]["outlier"] == 0
    assert ((measures.to_first > 0) & (measures.to_first < 1)).all()


def made(kl, first_norm=(1, 1, 20, 30), to_first=(0.1, 0.4, 0.2, 0.5)) -> PromptMeasures:
    arrays = {"kl": np.array([*kl, 0.0]), "agrees": np.ones(len(kl) + 1)}
    arrays |= {"first_norm": np.array(first_norm), "to_first": np.array(to_first)}
    return PromptMeasures(n_tokens=5, sink_kl=0.1, **arrays)


def test_the_rule_is_the_stated_one():
    result = summarise([made([0.9, 0.03, 0.015, 0.0]), made([1.1, 0.03, 0.015, 0.0])])
    assert result["recommended"]["first_layer"] == 2
    assert result["recommended"]["regime"] == "bidirectional:layers=2-"
    assert result["predictions"] == {"kl": 2, "outlier": 2, "attention": 1, "share": 1}
    assert result["curves"]["kl"] == [1.0, 0.03, 0.015, 0.0, 0.0]
    assert result["sink"]["share_of_kl_removed"] == pytest.approx(0.9)
    flat = summarise([made([0.001, 0, 0, 0], (1, 1, 1, 1), (0.1, 0.1, 0.1, 0.1))])
    assert flat["recommended"]["regime"] == "bidirectional"
    assert flat["predictions"] == {"kl": 0, "outlier": None, "attention": None, "share": None}
    assert flat["sink"]["share_of_kl_removed"] is None
    # A = L - 1 changes no prediction: recommending it must not read as a success.
    none = summarise([made([0.9, 0.8, 0.7, 0.0])])
    assert none["recommended"]["first_layer"] == 3
    assert none["sentence"].startswith("no regime layers=A-")


def test_no_label_is_read(monkeypatch):
    class Unlabelled(Item):
        """Refuses to name the right choice."""

        def __getattribute__(self, name):
            if name in ("gold", "continuations"):
                raise AssertionError(f"'{name}' was read")
            return super().__getattribute__(name)

    asked = []

    def load_items(names, **options):
        asked.append(options)
        return [
            Unlabelled(names[0], i, f"h{i}", i % 2, (f"Context {i}", "other"), (" a", " b"))
            for i in range(9)
        ]

    monkeypatch.setattr(recommend_module, "load_items", load_items)
    config = RecommendConfig(model="m", tasks=("piqa", "arc_easy"), limit=2)
    prompts = read_prompts(config)
    expected = [(f"{task}/{i}", f"Context {i}") for task in config.tasks for i in (0, 1)]
    assert [(prompt.source, prompt.text) for prompt in prompts] == expected
    assert all(options["fold"] == "explore" for options in asked)


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("The city of light\n\nOnce upon a time there was\nAnd\n", encoding="utf-8")
    return path


def test_the_command_writes_a_complete_run(prompts_file, tiny_folder, runs_dir, capsys):
    line = ["recommend", "--model", str(tiny_folder), "--prompts", str(prompts_file)]
    code = main([*line, "--device", "cpu"])
    out = capsys.readouterr()
    assert code == 0
    run = Run(runs_dir / "lab" / out.out.strip().rpartition("/")[2])
    assert (run.stage, run.state, run.config["kind"]) == ("lab", "done", "recommend")
    assert run.regime == "bidirectional"  # what the lists say was looked at
    assert run.status["done"] == run.status["total"]
    lines = [json.loads(line) for line in (run.path / "prompts.jsonl").open(encoding="utf-8")]
    assert sorted(line["source"] for line in lines) == ["line 1", "line 3", "line 4"]
    means = np.mean([line["kl"] for line in lines], axis=0)
    assert run.metrics["curves"]["kl"] == pytest.approx(means, rel=1e-4, abs=1e-9)
    assert run.metrics["n_prompts"] == 3
    assert run.metrics["thresholds"] == run.config["thresholds"]
    assert run.metrics["sentence"] in out.err
    assert run.metrics["sentence"] in (run.path / "log.txt").read_text(encoding="utf-8")
    assert json.loads((run.path / "probe.json").read_text(encoding="utf-8"))["passed"]


def test_jsonl_prompts_and_a_limit(tmp_path):
    lines = [{"prompt": "One two", "gold": 1}, {"prompt": "Three\nfour"}]
    config = RecommendConfig(model="m", prompts=write_lines(tmp_path / "mine.jsonl", lines))
    assert [prompt.text for prompt in read_prompts(config)] == ["One two", "Three\nfour"]
    assert len(read_prompts(replace(config, limit=1))) == 1


@pytest.mark.parametrize(
    ("name", "text", "flags", "says"),
    [
        ("none.txt", None, [], "No such file"),
        ("empty.txt", "\n \n", [], "has no prompts"),
        ("short.txt", "A longer prompt\nx\n", [], "prompt line 2 ('x') is 1 token long"),
        ("bad.jsonl", '{"prompt": "fine"}\n{"text": "no"}\n', [], "line 2"),
        ("bad.jsonl", "not json\n", [], "line 1"),
        ("long.txt", "word " * 400, [], "window holds"),
        ("fine.txt", "A prompt", ["--limit", "0"], "--limit 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    name, text, flags, says, tmp_path, tiny_folder, runs_dir, refused
):
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    line = ["recommend", "--model", str(tiny_folder), "--device", "cpu", "--prompts", str(path)]
    assert says in refused([*line, *flags], beside=True)
    assert not runs_dir.exists()
