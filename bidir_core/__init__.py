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

__version__ = "0.1.0"

# Public name -> where it lives. No name is that of a module here: importing the module would
# put it in the place of the function.
_PUBLIC = {
    "EvalConfig": ("config", "EvalConfig"),
    "FinetuneConfig": ("training.config", "FinetuneConfig"),
    "PipelineConfig": ("pipeline_config", "PipelineConfig"),
    "Regime": ("regimes", "Regime"),
    "Run": ("store", "Run"),
    "UserError": ("errors", "UserError"),
    "build_report": ("report", "build_report"),
    "compare_runs": ("compare", "compare"),
    "fetch_asset": ("assets", "ensure"),
    "find_run": ("store", "find_run"),
    "flips_of_runs": ("flips", "flips"),
    "list_runs": ("store", "list_runs"),
    "load_items": ("tasks", "load_items"),
    "load_model": ("models", "load"),
    "parse_regime": ("regimes", "parse_regime"),
    "resume_eval": ("evaluate", "resume"),
    "resume_finetune": ("training.finetune", "resume_finetune"),
    "run_eval": ("evaluate", "evaluate"),
    "run_finetune": ("training.finetune", "run_finetune"),
    "run_pipeline": ("pipeline", "run_pipeline"),
    "run_probe": ("probe", "run_probe"),
    "visibility": ("regimes", "visibility"),
    "write_report": ("report", "write_report"),
}

if TYPE_CHECKING:
    from bidir_core.assets import ensure as fetch_asset
    from bidir_core.compare import compare as compare_runs
    from bidir_core.config import EvalConfig
    from bidir_core.errors import UserError
    from bidir_core.evaluate import evaluate as run_eval
    from bidir_core.evaluate import resume as resume_eval
    from bidir_core.flips import flips as flips_of_runs
    from bidir_core.models import load as load_model
    from bidir_core.pipeline import run_pipeline
    from bidir_core.pipeline_config import PipelineConfig
    from bidir_core.probe import run_probe
    from bidir_core.regimes import Regime, parse_regime, visibility
    from bidir_core.report import build_report, write_report
    from bidir_core.store import Run, find_run, list_runs
    from bidir_core.tasks import load_items
    from bidir_core.training.config import FinetuneConfig
    from bidir_core.training.finetune import resume_finetune, run_finetune

__all__ = [
    "EvalConfig",
    "FinetuneConfig",
    "PipelineConfig",
    "Regime",
    "Run",
    "UserError",
    "build_report",
    "compare_runs",
    "fetch_asset",
    "find_run",
    "flips_of_runs",
    "list_runs",
    "load_items",
    "load_model",
    "parse_regime",
    "resume_eval",
    "resume_finetune",
    "run_eval",
    "run_finetune",
    "run_pipeline",
    "run_probe",
    "visibility",
    "write_report",
]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'bidir_core' has no attribute '{name}'") from None
    return getattr(import_module(f"bidir_core.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
