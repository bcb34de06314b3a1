"""Accuracies by bytes, tokens and mutual information, against lm-eval's rules and a slow computation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from bidir_core.analyse.compare import compare, comparison_text
from bidir_core.runs.records import make_record, read_parquet, write_parquet
from bidir_core.runs.run import Run, compute_metrics
from bidir_core.runs.writer import RunWriter

TEXTS = ("a", "naïve", "日本語 とても", "four plain words here", "Ω", "ß ß ß ß ß ß")
N = 150


def drawn(seed: int) -> list[dict]:
    """Documents of two to four choices, lengths and bytes at odds, with scores that nearly tie."""
    rng = np.random.default_rng(seed)
    docs = []
    for _ in range(N):
        choices = rng.permutation(TEXTS)[: rng.integers(2, 5)].tolist()
        counts = rng.integers(1, 6, len(choices)).tolist()
        ll = [-(0.7 * len(text) + 2 * rng.random()) for text in choices]
        gold = int(rng.integers(len(choices)))
        docs.append({"q": "?", "choices": choices, "gold": gold, "counts": counts, "ll": ll})
    return docs


def rows(docs: list[dict], **changes) -> list[dict]:
    shared = {"task": "t", "contexts": ["?"], "n_prefix_tokens": [1], **changes}
    records = []
    for i, doc in enumerate(docs):
        values = {"doc_id": i, "doc_hash": str(i), "gold": doc["gold"], "ll": doc["ll"]}
        values |= {"continuations": [f" {text}" for text in doc["choices"]]}
        records.append(make_record(**shared, **values, n_continuation_tokens=doc["counts"]))
    return records


def by_lm_eval(docs: list[dict], alone: list[dict]) -> dict[str, float]:
    data = Dataset.from_list([{k: doc[k] for k in ("q", "choices", "gold")} for doc in docs])
    metrics = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
    task = ConfigurableTask(
        config={
            "task": "t",
            "output_type": "multiple_choice",
            "custom_dataset": lambda **_: DatasetDict({"validation": data}),
            "validation_split": "validation",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "num_fewshot": 0,
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in metrics
            ],
        }
    )
    results = []
    for doc, floor in zip(docs, alone, strict=True):
        scores = np.float32([*doc["ll"], *floor["ll"]]).astype(float)
        results.append(task.process_results(doc, [(score, False) for score in scores]))
    return {name: float(np.mean([result[name] for result in results])) for name in metrics}


def test_metrics_are_lm_evals_and_tokens_are_as_computed_slowly():
    docs = drawn(0)
    metrics = compute_metrics(rows(docs))
    row = metrics["tasks"]["t"]
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert row[name] == pytest.approx(by_lm_eval(docs, docs)[name]), name
    slow = [
        max(range(len(d["ll"])), key=lambda c: d["ll"][c] / d["counts"][c]) == d["gold"]
        for d in docs
    ]
    assert row["acc_tokens"] == pytest.approx(sum(slow) / N)
    assert metrics["macro"]["acc_bytes"] == row["acc_bytes"]
    assert len({row["acc"], row["acc_norm"], row["acc_bytes"], row["acc_tokens"]}) == 4
    # What is not kept is not stated; errors count as wrong; one continuation for all has acc alone.
    assert "acc_bytes" not in compute_metrics(rows(docs, compact=True))["macro"]
    failed = [r | {"ll": None, "correct": False, "error": "no"} for r in rows(docs)]
    assert compute_metrics([*rows(docs)[:1], *failed[1:]])["tasks"]["t"]["acc_tokens"] in (0, 1 / N)
    same = [r | {"continuations": [" x", " x"], "correct_norm": None} for r in rows(docs)]
    alone = compute_metrics(same)
    assert alone["tasks"]["t"]["acc_bytes"] is None
    assert alone["macro"]["acc_bytes"] == alone["macro"]["acc"] == row["acc"]


def stored(root: Path, docs: list[dict], *, context: str = "full", model: str = "m") -> Run:
    settings = {"model": model, "tasks": ["t"], "regime": "causal", "context": context}
    folder = root / "stage1_vanilla_eval" / f"{context}-{model}-{docs[0]['ll'][0]}"
    writer = RunWriter.create("s", settings, folder=folder, model_fingerprint=model)
    writer.append(rows(docs))
    writer.finish()
    return Run(folder)


def test_mutual_information_of_two_runs_above_one_without_contexts(tmp_path):
    docs = drawn(0)
    rng = np.random.default_rng(1)
    others = [[d | {"ll": [v + rng.normal() for v in d["ll"]]} for d in docs] for _ in range(2)]
    a, b = stored(tmp_path, docs), stored(tmp_path, others[0])
    floor = stored(tmp_path, others[1], context="none")
    result = compare(a, b, floor=floor)
    information = result.information
    assert information.acc_a == pytest.approx(by_lm_eval(docs, others[1])["acc_mutual_info"])
    assert information.acc_b == pytest.approx(by_lm_eval(others[0], others[1])["acc_mutual_info"])
    assert information.acc_a != result.macro.acc_a
    assert information.delta.value == pytest.approx(information.acc_b - information.acc_a)
    assert "accuracy by mutual information: a 0." in comparison_text(result)
    # A run may be kept without its scores. The floor of another model, or of shuffled contexts, says nothing of p(choice).
    for wrong in ({"context": "none", "model": "n"}, {"context": "shuffled"}):
        assert compare(a, b, floor=stored(tmp_path, others[1], **wrong)).information is None
    bare = read_parquet(floor.path / "items.parquet")
    bare = bare.set_column(6, bare.schema.field("ll"), pa.nulls(N, bare.schema.field("ll").type))
    write_parquet(bare, floor.path / "items.parquet")
    (floor.path / "metrics.json").write_text('{"schema": 1}')
    assert compare(a, b, floor=Run(floor.path)).information is None
