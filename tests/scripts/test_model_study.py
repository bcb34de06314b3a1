"""The study on a tiny model: every step once, chosen on explore, and a failure blocks no other."""

from __future__ import annotations

import json

import pytest
import torch

from bidir_core.common.errors import UserError
from bidir_core.train.config import FinetuneConfig
from scripts import model_study, repair
from scripts.model_study import Step, Study, recipe_grid, short, train_in_memory, work


@pytest.fixture
def study(tiny_folder, own_items, runs_dir, tmp_path, monkeypatch) -> Study:
    data = tmp_path / "samples.jsonl"
    lines = [{"prompt": f"say {i} then", "response": f" {i} it is"} for i in range(20)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model, tasks = str(tiny_folder), (str(own_items),)
    monkeypatch.setattr(model_study, "RATES", {"lora": (1e-3, 2e-3), "full": (1e-4,)})
    monkeypatch.setattr(model_study, "SEEDS", {"lora": (0, 1), "full": (0,)})
    monkeypatch.setattr(model_study, "ORDER_TASKS", tasks)
    monkeypatch.setattr(model_study, "FRESH_SEEDS", (1,))
    tried = [one | {"steps": 2, "warmup_steps": 1} for one in list(recipe_grid())[:2]]
    monkeypatch.setattr(model_study, "OBJECTIVES", ("3B", "3C"))
    monkeypatch.setattr(model_study, "recipe_grid", lambda: tried)
    # A random model may lose more than a point by training; that is not what is asked here.
    monkeypatch.setattr(repair, "WITHIN", 100.0)
    training = {"data": str(data), "decontaminate": False, "batch_samples": 4}
    one = (model,)
    return Study(one, one, one, one, limit=8, tasks=tasks, training=training, steps=1)


@pytest.mark.slow
def test_every_step_is_done_once_and_the_files_are_made(study, tmp_path) -> None:
    name, steps = short(study.models[0]), list(study.plan())
    assert work(steps, 600) == 0
    done = model_study.finished()
    assert {step.name for step in steps} <= set(done)
    rates = {done[f"{name}-{o}-lora-seed1"][0].settings["lr"] for o in ("3B", "3C")}
    assert rates == {repair.chosen_rate(done, name, "lora")}
    before = {key: [run.id for run in runs] for key, runs in done.items()}
    assert work(steps, 600) == 0
    again = model_study.finished()
    assert {key: [run.id for run in runs] for key, runs in again.items()} == before

    assert repair.main(["--study", name, "--docs", str(tmp_path)]) == 0
    claims = json.loads((tmp_path / f"claims-{name}.json").read_text())["claims"]
    assert claims["3b_control_lora"]["seeds"] == [0, 1]
    assert claims["interaction"]["seeds"] == [0]
    recipes = json.loads((tmp_path / f"recipes-{name}.json").read_text())
    (chosen,) = [one for one in recipes["recipes"] if one["name"] == recipes["chosen"]]
    assert chosen["seeds"] == [0, 1]
    assert chosen["confirm_fresh_seeds"]["seeds"] == [1]


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


def test_out_of_memory_is_tried_again_with_fewer_tokens_at_once(monkeypatch, tmp_path) -> None:
    tried = []

    def run_finetune(config):
        tried.append(config.micro_tokens)
        if len(tried) < 3:
            raise UserError("out of memory on cuda") from torch.OutOfMemoryError("too much")
        return tmp_path

    monkeypatch.setattr(model_study, "run_finetune", run_finetune)
    config = FinetuneConfig(model="m", objective="3B", device="cpu", micro_tokens=4000)
    assert train_in_memory(config) == tmp_path
    assert tried == [4000, 2000, 1000]

    def refused(config):
        raise UserError("another thing")

    monkeypatch.setattr(model_study, "run_finetune", refused)
    with pytest.raises(UserError, match="another thing"):
        train_in_memory(config)


def test_the_grid_has_no_recipe_twice_and_warms_up_for_a_part_of_it_only() -> None:
    recipes = list(recipe_grid())
    assert len({tuple(one.values()) for one in recipes}) == len(recipes) == 20
    assert all(0 < one["warmup_steps"] <= one["steps"] / 5 for one in recipes)
