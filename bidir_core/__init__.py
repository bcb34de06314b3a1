"""Bidirectional prefill in decoder-only language models: measure it, explain it, repair it.

What the commands do, for other people's scripts:

    from bidir_core import EvalConfig, run_eval, find_run, compare_runs

    causal = run_eval(EvalConfig(model="smollm2-135m-instruct", limit=100))
    opened = run_eval(EvalConfig(model="smollm2-135m-instruct", limit=100, regime="bidirectional"))
    print(compare_runs(find_run(causal), find_run(opened)).sentence)

Names are looked up when first used, so that reading runs never waits for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bidir_core.common.version import __version__ as __version__

# Public name -> where it lives. No name is that of a module here: importing the module would
# put it in the place of the function.
_PUBLIC = {
    "EvalConfig": ("evaluate.config", "EvalConfig"),
    "FinetuneConfig": ("train.config", "FinetuneConfig"),
    "PipelineConfig": ("jobs.pipeline_config", "PipelineConfig"),
    "Regime": ("regimes", "Regime"),
    "Run": ("runs.run", "Run"),
    "UserError": ("common.errors", "UserError"),
    "build_report": ("report.report", "build_report"),
    "compare_runs": ("analyse.compare", "compare"),
    "fetch_asset": ("data.fetch", "ensure"),
    "find_run": ("runs.find", "find_run"),
    "flips_of_runs": ("analyse.flips", "flips"),
    "list_runs": ("runs.find", "list_runs"),
    "load_items": ("data.tasks", "load_items"),
    "load_model": ("models.loading", "load"),
    "parse_regime": ("regimes", "parse_regime"),
    "resume_eval": ("evaluate.evaluate", "resume"),
    "resume_finetune": ("train.finetune", "resume_finetune"),
    "run_eval": ("evaluate.evaluate", "evaluate"),
    "run_finetune": ("train.finetune", "run_finetune"),
    "run_pipeline": ("jobs.pipeline", "run_pipeline"),
    "run_probe": ("models.probe", "run_probe"),
    "visibility": ("regimes", "visibility"),
    "write_report": ("report.report", "write_report"),
}

if TYPE_CHECKING:
    from bidir_core.analyse.compare import compare as compare_runs
    from bidir_core.analyse.flips import flips as flips_of_runs
    from bidir_core.common.errors import UserError
    from bidir_core.data.fetch import ensure as fetch_asset
    from bidir_core.data.tasks import load_items
    from bidir_core.evaluate.config import EvalConfig
    from bidir_core.evaluate.evaluate import evaluate as run_eval
    from bidir_core.evaluate.evaluate import resume as resume_eval
    from bidir_core.jobs.pipeline import run_pipeline
    from bidir_core.jobs.pipeline_config import PipelineConfig
    from bidir_core.models.loading import load as load_model
    from bidir_core.models.probe import run_probe
    from bidir_core.regimes import Regime, parse_regime, visibility
    from bidir_core.report.report import build_report, write_report
    from bidir_core.runs.find import find_run, list_runs
    from bidir_core.runs.run import Run
    from bidir_core.train.config import FinetuneConfig
    from bidir_core.train.finetune import resume_finetune, run_finetune

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'bidir_core' has no attribute '{name}'") from None
    return getattr(import_module(f"bidir_core.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
