"""The study on a tiny model: every step once, chosen on explore, and a failure blocks no other."""

import json

import pytest

from bidir_core.common.errors import UserError
from scripts import model_study, repair
from scripts.model_study import Step, Study, short, work
from scripts.repair import chosen_rate
from tests.factory import training_file


@pytest.fixture
def study(tiny_folder, own_items, runs_dir, tmp_path, monkeypatch) -> Study:
    data = training_file(tmp_path / "samples.jsonl", 20)
    model, tasks = str(tiny_folder), (str(own_items),)
    monkeypatch.setattr(model_study, "RATES", {"lora": (1e-3, 2e-3), "full": (1e-4,)})
    monkeypatch.setattr(model_study, "SEEDS", {"lora": (0, 1), "full": (0,)})
    monkeypatch.setattr(model_study, "ORDER_TASKS", tasks)
    monkeypatch.setattr(model_study, "OBJECTIVES", ("3B", "3C"))
    monkeypatch.setattr(model_study, "OTHER_STEPS", {"3B": (2,)})
    monkeypatch.setattr(model_study, "ORDER_LAYERS", (1,))
    training = {"data": data, "decontaminate": False, "batch_samples": 4}
    models = (model,)
    return Study(models, models, models, limit=8, tasks=tasks, training=training, steps=1)


@pytest.mark.slow
def test_every_step_is_done_once_and_the_files_are_made(study, tmp_path) -> None:
    name, steps = short(study.models[0]), list(study.plan())
    assert work(steps, 600) == 0
    done = model_study.finished()
    assert {step.name for step in steps} <= set(done)
    rates = {done[f"{name}-{o}-lora-seed1"][0].settings["lr"] for o in ("3B", "3C")}
    assert rates == {chosen_rate(done, name, "lora")}
    before = {key: [run.id for run in runs] for key, runs in done.items()}
    assert work(steps, 600) == 0
    again = model_study.finished()
    assert {key: [run.id for run in runs] for key, runs in again.items()} == before

    assert repair.main(["--study", name, "--docs", str(tmp_path)]) == 0
    claims = json.loads((tmp_path / f"claims-{name}.json").read_text())["claims"]
    assert claims["3b_control_lora"]["seeds"] == [0, 1]
    assert claims["interaction"]["seeds"] == [0]


def test_a_step_that_fails_blocks_no_other(runs_dir, capsys) -> None:
    done = []

    def broken(step: Step) -> None:
        raise RuntimeError("no such thing")

    def needed(step: Step) -> None:
        done.append(step.name)
        raise UserError("nothing to choose from")

    steps = [Step("first", "m", broken), Step("second", "m", needed, ("first",))]
    assert work(steps, 60) == 1
    assert done == ["second"]
    failure = runs_dir / ".claims" / "first.failed"
    assert failure.read_text() == "RuntimeError: no such thing\n"
    assert "first FAILED" in capsys.readouterr().out
