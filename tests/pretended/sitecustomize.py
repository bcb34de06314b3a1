"""What a process started with this folder on its PYTHONPATH loads first: no model, so no torch.

``eval`` writes a run item by item, with the answers of :mod:`tests.factory`; ``serve-model`` loads
whatever is a folder of a model. All else that such a process does is the real thing.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace


def stand_in(name: str, **members) -> None:
    sys.modules[f"bidir_core.{name}"] = SimpleNamespace(**members)


def evaluate_regimes(config, regimes):
    from bidir_core.common.settings import to_json
    from bidir_core.runs.layout import evaluation_dir
    from bidir_core.runs.writer import RunWriter

    def run(regime):
        settings = to_json(replace(config, regime=str(regime)))
        return score(RunWriter.create(evaluation_dir(regime), settings, name=config.name))

    return [run(regime) for regime in regimes]


def resume(reference, given, **_):
    from bidir_core.evaluate.config import EvalConfig
    from bidir_core.runs.find import resumable
    from bidir_core.runs.writer import RunWriter

    run, _ = resumable(reference, "eval", EvalConfig, given)
    return run.path if run.state == "done" else score(RunWriter.resume(run.path))


def score(writer) -> Path:
    """Without a limit, more items than anybody waits for; slowly while the file ``PRETENDED_SLOWLY``
    is there."""
    from bidir_core.common.progress import terminable
    from tests.factory import make_item, score_item

    n_items = writer.config["config"]["limit"] or 1_000_000
    slowly = Path(os.environ.get("PRETENDED_SLOWLY", "nowhere"))
    with writer, terminable():
        for number in range(n_items):
            if ("piqa", number) not in writer.recorded:
                item = make_item("piqa", number, 0)
                writer.append([score_item(item, seed=1, accuracy=0.6, data_seed=0)])
                writer.heartbeat(number + 1, n_items)
                time.sleep(1 if slowly.exists() else 0.005)
        writer.finish()
    return writer.path


def load(model: str):
    from bidir_core.common.errors import UserError

    if not Path(model, "config.json").exists():
        raise UserError(f"there is no model in {model}")
    facts = {"n_layers": 4, "max_length": 512, "dtype": "float32", "device": "cpu"}
    tokenizer = SimpleNamespace(chat_template=None)
    return SimpleNamespace(**facts, tokenizer=tokenizer, training_record=None)


if {"eval", "serve-model"} & {*sys.orig_argv}:
    stand_in("evaluate.evaluate", evaluate_regimes=evaluate_regimes, resume=resume)
    stand_in("models.devices", sweep=lambda: None)
    stand_in("models.loading", asked_by=lambda parsed: {"model": parsed.model}, load=load)
    stand_in("models.probe", Prober=lambda loaded: None)
