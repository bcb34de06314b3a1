"""Studies of seeded runs, and the papers they make: made once for all tests here."""

from pathlib import Path

import pytest

from bidir_core.report.paper import write_paper
from bidir_core.report.report import build_report
from bidir_core.report.sections import Report
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from tests.report_runs import REPAIRED, evaluation, make_finetune, report, two_by_two


@pytest.fixture(scope="session")
def repaired(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repaired")
    two_by_two(root, REPAIRED)
    evaluation(root, accuracy=0.35, config={"context": "none"})
    return root


@pytest.fixture(scope="session")
def three_seeds(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("three")
    two_by_two(root, REPAIRED, seeds=(0, 1, 2))
    return root


@pytest.fixture(scope="session")
def committed_report() -> Report:
    return build_report(roots=[COMMITTED_RUNS])


@pytest.fixture(scope="session")
def repaired_report(repaired) -> Report:
    return report(repaired)


@pytest.fixture(scope="session")
def paper(repaired_report, tmp_path_factory) -> Path:
    return write_paper(repaired_report, tmp_path_factory.mktemp("out") / "paper")


@pytest.fixture(scope="session")
def seeded(tmp_path_factory) -> tuple[Path, Path, Report]:
    """Two seeds an arm, a regime with dials, errors, a leaky arm, and runs without items."""
    root = tmp_path_factory.mktemp("seeded")
    few = {"n_items": 250}
    for (code, regime), accuracy in REPAIRED.items():
        for seed in (0, 1) if code != "base" else (0,):
            trained = None
            if code != "base":
                name = f"*_{code}-{seed}-lora"
                known = [run for run in list_runs([root]) if run.path.match(name)]
                recipe = {"seed": seed, "method": "lora", "lora_rank": 8, "lora_alpha": 16}
                trained = known[0] if known else make_finetune(root, code, **recipe)
            evaluation(root, regime, accuracy, trained=trained, seed=3 + seed, **few)
    evaluation(root, "bidirectional:sink=1,layers=2-5", 0.52, n_errors=3, **few)
    leaky, distilled = make_finetune(root, "3A"), make_finetune(root, "distill", causal_anchor=1.0)
    evaluation(root, "bidirectional", 0.99, trained=leaky, **few)
    evaluation(root, "bidirectional", 0.55, trained=distilled, **few)
    causal = evaluation(root, "causal", 0.55, trained=distilled, **few)
    (causal.path / "items.parquet").unlink()
    seeded_report = report(root)
    return root, write_paper(seeded_report, tmp_path_factory.mktemp("out") / "paper"), seeded_report
