"""Why an item flips: restorations end where evaluations do, and the words say what was found."""

import json
from dataclasses import replace

import pytest

from bidir_core.common.settings import from_json
from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.explain.configs import RESULT, WhyConfig
from bidir_core.explain.why import explain, sentences
from bidir_core.runs.find import find_run
from bidir_core.runs.run import Run
from tests.factory import write_lines
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def own_items(tmp_path_factory):
    """60 items whose choices are equally long, so that a random model has no favourite."""

    def item(i: int) -> dict:
        choices = [f" {chr(97 + (i + k) % 26)}{k}" for k in range(3)]
        context = f"{i} {'what then ' * (i % 3)}is it:"
        return {"contexts": [context], "continuations": choices, "gold": i % 3}

    return write_lines(tmp_path_factory.mktemp("tasks") / "mine.jsonl", map(item, range(60)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, own_items):
    """A causal and a bidirectional run of a tiny model, and an item that flips between them."""
    folder = tmp_path_factory.mktemp("why")
    model = save_tiny_model(folder / "model", "gemma3", seed=3)
    asked = {"model": str(model), "tasks": (own_items,), "limit": 25, "device": "cpu"}
    asked["runs_dir"] = str(folder / "runs")
    regimes = ("causal", "bidirectional")
    a, b = (Run(evaluate(EvalConfig(**asked, regime=regime))) for regime in regimes)
    preds_a, preds_b = (run.items().set_index("doc_id")["pred"] for run in (a, b))
    flipped = preds_a.index[preds_a != preds_b]
    assert len(flipped)
    return a, b, int(flipped[0])


def result_of(path) -> dict:
    return json.loads((path / RESULT).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def explained(runs):
    a, b, doc_id = runs
    config = WhyConfig(task="mine", doc_id=doc_id, as_run=b.id, runs_dir=str(b.path.parents[1]))
    path = explain(config)
    return a, b, Run(path), result_of(path)


def test_it_begins_and_ends_where_the_runs_are(explained):
    a, b, _run, result = explained
    for name, recorded in (("causal", a), ("opened", b)):
        record = recorded.item("mine", result["doc_id"])
        assert result[name]["choice"] == record["pred"]
        assert result[name]["ll"] == pytest.approx(record["ll"], abs=2e-4)
    assert result["flips"]
    ll = pytest.approx(result["opened"]["ll"], abs=2e-4)
    assert result["recorded"] == {"run": b.id, "choice": result["opened"]["choice"], "ll": ll}
    n = result["n_layers"]
    assert {len(result["layers"][name]) for name in ("single", "from_first", "from_last")} == {n}
    # Restoring all layers is causal, from either end; restoring every token too (see variants).
    assert result["layers"]["from_first"][-1] == result["causal"]
    assert result["layers"]["from_last"][0] == result["causal"]
    assert result["layers"]["single"][0] == result["layers"]["from_first"][0]
    assert result["causal"]["lead"] > 0 > result["opened"]["lead"]


def score(run: Run, doc_id: int, regime: str) -> list[float]:
    config = replace(from_json(EvalConfig, run.settings), limit=doc_id + 1, regime=regime)
    path = evaluate(replace(config, runs_dir=str(run.path.parents[1] / "other")))
    return Run(path).item("mine", doc_id)["ll"]


def test_lambda_and_tokens_agree_with_evaluations(explained):
    _, b, _, result = explained
    strengths, doc_id, before = result["lambda"], result["doc_id"], result["causal"]["choice"]
    assert 0 < strengths["low"] < strengths["high"] <= 1
    low, high = (score(b, doc_id, f"bidirectional:lambda={strengths[x]}") for x in ("low", "high"))
    assert low.index(max(low)) == before
    assert high.index(max(high)) != before
    points = {point["lambda"]: point for point in strengths["points"]}
    assert points[strengths["low"]]["ll"] == pytest.approx(low, abs=2e-4)
    assert points[strengths["high"]]["ll"] == pytest.approx(high, abs=2e-4)
    assert list(points) == sorted(points)
    first = result["tokens"][0]
    assert (first["first"], first["last"], first["looks_ahead"]) == (0, 0, True)
    assert first["ll"] == pytest.approx(score(b, doc_id, "bidirectional:sink=1"), abs=2e-4)
    last = result["tokens"][-1]
    assert last["last"] == result["n_prefix"] - 1
    assert last["looks_ahead"] is (last["first"] < last["last"])
    covered = [i for token in result["tokens"] for i in range(token["first"], token["last"] + 1)]
    assert covered == list(range(result["n_prefix"]))
    assert len(result["pieces"]) == result["n_prefix"]
    assert len(result["tokens"]) <= 65


def test_the_run_folder_is_read_without_a_model(explained):
    _, _b, run, result = explained
    assert (run.stage, run.state, run.config["kind"]) == ("lab", "done", "why")
    assert run.name == f"why-mine-{result['doc_id']}"
    assert run.regime == "bidirectional"
    assert run.settings["task"].endswith("mine.jsonl")
    assert find_run(run.path).id == run.id
    assert run.metrics["cost"]["computed_tokens"] > 0
    assert (run.path / RESULT).stat().st_size < 200_000
    assert run.status["done"] == run.status["total"]


def test_a_model_and_regime_can_be_named_without_a_run(runs, tmp_path, own_items):
    _, b, doc_id = runs
    asked = {"model": b.settings["model"], "task": own_items, "doc_id": doc_id, "device": "cpu"}
    asked |= {"regime": "bidirectional:sink=1,layers=1-2,lambda=0.5", "metric": "acc_norm"}
    result = result_of(explain(WhyConfig(**asked, runs_dir=str(tmp_path))))
    assert result["recorded"] is None
    # Layers outside the regime's own are causal already.
    assert result["layers"]["single"][0] == result["opened"]
    assert result["layers"]["from_last"][1] == result["causal"]
    assert not result["tokens"][0]["looks_ahead"]
    assert result["tokens"][0]["ll"] == result["opened"]["ll"]
    assert max(point["lambda"] for point in result["lambda"]["points"]) == 0.5


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--doc-id 1", "--task is missing"),
        ("--task piqa", "--doc-id is missing"),
        ("--task piqa --doc-id -3", "numbered from 0 up"),
        ("--task piqa --doc-id 1", "--model is missing"),
        ("--task piqa --doc-id 1 --regime x", "unknown regime"),
        ("--task piqa --doc-id 1 --as-run nothing", "there is no run"),
        ("--task nope --doc-id 1 --model MODEL", "unknown task"),
        ("--task ITEMS --doc-id 60 --model MODEL", "outside the 60 rows"),
        ("--task ITEMS --doc-id 1 --model MODEL --regime causal", "nothing to explain"),
        ("--task ITEMS --doc-id 1 --model MODEL --regime causal:hide=0", "nothing to explain"),
        ("--task ITEMS --doc-id 1 --model MODEL --regime bidirectional:layers=0-9", "layer 9 does"),
        ("--task mine --doc-id 1 --as-run CAUSAL", "nothing to explain"),
        ("--task mine --doc-id 40 --as-run BIDIR", "has no item mine/40"),
        ("--task piqa --doc-id 1 --as-run BIDIR", "was not made on 'piqa'"),
        ("--task ITEMS --doc-id 1 --model MODEL --metric f1", "--metric"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    flags, says, runs, own_items, tmp_path, refused, monkeypatch
):
    a, b, _ = runs
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path / "none"))
    names = {"MODEL": b.settings["model"], "ITEMS": own_items, "CAUSAL": str(a.path)}
    names["BIDIR"] = str(b.path)
    assert says in refused(["why", *(names.get(flag, flag) for flag in flags.split())])
    assert not (tmp_path / "none").exists()


# --- words -----------------------------------------------------------------------------------


def made(single=(), first=3, last=0, tokens=(), low=0.01, high=0.02, returns=False) -> dict:
    """A result of 4 layers and 5 tokens; the arguments say what turns the answer back."""

    def points(back, n=4):
        return [{"choice": 0 if i in back else 1, "lead": 0.0} for i in range(n)]

    layers = {"single": points(single), "from_first": points(range(first, 4))}
    layers |= {"from_last": points(range(last + 1))}
    spans = [
        {"first": i, "last": i, "looks_ahead": i < 4, **point}
        for i, point in enumerate(points(tokens, 5))
    ]
    result = {"gold": 0, "regime": "bidirectional", "metric": "acc", "n_layers": 4, "n_prefix": 5}
    result |= {"pieces": ["The", " cat", " sat", " on", " it"], "flips": True}
    result |= {"causal": {"choice": 0, "lead": 1.5}, "opened": {"choice": 1, "lead": -2.25}}
    lambdas = {"low": low, "high": high, "returns": returns}
    return result | {"layers": layers, "tokens": spans, "lambda": lambdas}


def test_sentences_say_what_was_found():
    text = " ".join(sentences(made(single=[3], first=1, last=2, tokens=[0])))
    assert "Causal gives choice 0 (right), bidirectional choice 1 (wrong)." in text
    assert "Making layer 3 causal again alone turns the answer back." in text
    assert "Growing from the first layer, layers 0-1 suffice; from the last, layers 2-3." in text
    assert (
        "Of 4 prompt tokens, token 0 (“The”) made causal again turns it back, and no other." in text
    )
    assert "It flips between lambda=0.01 and 0.02." in text
    text = " ".join(sentences(made(single=[0, 1, 3], tokens=[0, 1, 2, 3], returns=True)))
    assert "any one of layers 0-1, 3" in text
    assert "it takes all 4" in text
    assert "Of 4 prompt tokens, 4 each turn it back alone" in text
    assert "no single threshold" in text
    text = " ".join(sentences(made(low=0.0, high=1e-6)))
    assert "No single layer made causal again" in text
    assert "No single prompt token made causal again turns it back (4 tried)" in text
    assert "Even lambda=1e-06 flips it" in text


def test_sentences_of_an_item_that_does_not_flip_claim_nothing():
    result = made() | {"opened": {"choice": 0, "lead": 0.5}, "flips": False}
    text = " ".join(sentences(result))
    assert "nothing flips" in text
    assert "+1.50 to +0.50 nats" in text
    assert "turns the answer back" not in text


def test_a_record_that_says_otherwise_is_told():
    result = made() | {"recorded": {"run": "stage2/x", "choice": 0}}
    assert "recorded choice 0 where this machine computes 1" in sentences(result)[-1]
