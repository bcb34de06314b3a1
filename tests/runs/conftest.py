"""lm-eval 0.4.13 scores a tiny model on documents we hand it, once, and saves its samples as its
command line does; our own run of the same model and the import must agree item by item.
"""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from bidir_core.evaluate.config import EvalConfig
from bidir_core.evaluate.evaluate import evaluate
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.run import Run
from tests.interop_files import DOCS, LIMIT, TASKS
from tests.lm_eval_reference import lm_eval_task


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task, docs in DOCS.items():
        (folder / task).mkdir()
        lines = "".join(json.dumps(doc) + "\n" for doc in docs)
        (folder / task / "validation.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="session")
def theirs(tiny_folder, tmp_path_factory) -> Path:
    """lm-eval's own output folder, written by its own tracker."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    out = tmp_path_factory.mktemp("lm-eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        tracker = EvaluationTracker(output_path=str(out))
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(tiny_folder), "dtype": "float32"},
            tasks=[lm_eval_task(name, datasets.Dataset.from_list(DOCS[name])) for name in TASKS],
            task_manager=TaskManager(include_defaults=False),  # else it reads 13,000 files
            device="cpu",
            batch_size=4,
            limit=LIMIT,
            bootstrap_iters=1,
            log_samples=True,
            evaluation_tracker=tracker,
        )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return out


@pytest.fixture(scope="session")
def config(tiny_folder, data, tmp_path_factory) -> EvalConfig:
    return EvalConfig(
        model=str(tiny_folder),
        tasks=TASKS,
        limit=LIMIT,
        device="cpu",
        dtype="float32",
        data_source=str(data),
        runs_dir=str(tmp_path_factory.mktemp("ours")),
    )


@pytest.fixture(scope="session")
def ours(config) -> Run:
    return Run(evaluate(config))


@pytest.fixture(scope="session")
def imported(theirs, tmp_path_factory) -> Run:
    return Run(import_results(theirs, runs_dir=tmp_path_factory.mktemp("imported")).path)


@pytest.fixture
def copy(theirs, tmp_path) -> Path:
    """lm-eval's files in a folder of one's own, to damage."""
    return Path(shutil.copytree(next(theirs.iterdir()), tmp_path / "copy"))
