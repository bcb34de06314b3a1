"""Sweeps and the probe on the Launch page: what they take, what is wrong, where results open."""

import json
import re
from dataclasses import replace

import pytest

from bidir_core import jobs
from bidir_core.explain.sweep_points import ORDER_PRESET_TASKS, LabConfig, planned_points
from bidir_core.jobs.estimate import Measured, estimate, layers_of
from bidir_core.jobs.pipeline_config import PUBLISHED
from bidir_core.jobs.queue import _run_to_resume
from bidir_core.runs.writer import RunWriter
from bidir_ui.launch import ask, review
from bidir_ui.launch.form import PRESETS, Draft
from tests.app import open_page, words
from tests.factory import timed_run
from tests.lab_factory import make_sweep
from tests.ui.test_launch_page import PAGE, code, fake

MODEL = "smollm2-135m-instruct"


def points(**settings) -> int | None:
    planned = planned_points(LabConfig(model=MODEL, **settings), 30)
    return None if planned is None else len(planned)


# --- how many points, and what they take -------------------------------------------------------


def test_points_are_counted_as_the_sweep_will_run_them():
    assert points(sweep=("sink=0,1,2,4,8",)) == 6  # sink=0 is the bidirectional reference
    assert points(sweep=("layers=windows:5",)) == 2 + 26
    assert points(sweep=("sink=1", "sink=0,1*lambda=0.1,1")) == 2 + 3
    alone, with_sweep = points(controls=True), points(sweep=("sink=1,2",), controls=True)
    assert with_sweep == alone + 1  # sink=1 is among the controls


def test_windows_of_an_unknown_model_stay_uncounted_and_other_sweeps_do_not():
    config = LabConfig(model="someone/model-3B", sweep=("layers=windows:5",))
    assert layers_of(config.model) is None
    assert planned_points(config, None) is None
    cost = estimate(config, "cpu")
    assert (cost.seconds, cost.n_points) == (None, None)
    assert estimate(replace(config, sweep=("layers=0-4",)), "cpu").n_points == 3


def test_a_folder_says_how_many_layers_it_has(tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 100}
    for text, expected in (
        (sizes | {"num_hidden_layers": 7}, 7),
        ({"text_config": sizes | {"num_hidden_layers": 9}}, 9),
        (sizes | {"num_hidden_layers": "many"}, None),
        (sizes, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(text))
        assert layers_of(str(tmp_path)) == expected
    (tmp_path / "config.json").write_text("torn")
    assert layers_of(str(tmp_path)) is None
    assert layers_of("../no such model") is None
    assert layers_of("smollm2-135m-instruct") == 30


# --- the form ----------------------------------------------------------------------------------


def test_a_sweep_shows_its_points_and_the_time_of_each(root, own_items, tiny_folder):
    known = {"f.model": str(tiny_folder), "f.tasks": str(own_items)}
    text = words(open_page(PAGE, stage="lab-sink", **known))
    assert re.search(r"Time\s+not measured yet on this machine", text)
    assert "360 items" in text
    for seconds in (10.0, 20.0):
        timed_run(
            root, model=str(tiny_folder), seconds=seconds, computed_tokens=20_000, device="cpu"
        )
    text = words(open_page(PAGE, stage="lab-sink", **known))
    assert re.search(r"Time\s+about \d+ s \(", text)
    assert re.search(r"Points\s+6, each about \d", text)
    app = open_page(PAGE, stage="lab-layers", **{"f.model": "someone/model-3B"})
    assert "as many as the layers make" in words(app)
    assert [button for button in app.button if button.key == "launch-start"]


def test_a_time_not_known_is_measured_where_a_start_is_reviewed(
    root, own_items, tiny_folder, monkeypatch
):
    monkeypatch.setattr(review, "timed", {})
    app = open_page(PAGE, **{"f.model": str(tiny_folder), "f.tasks": str(own_items)})
    app.button(key="launch-time").click().run()
    assert not app.exception
    assert [rate for rate in review.timed.values() if rate], "a layer was timed, in another process"
    assert re.search(r"Time\s+about \d", words(app))
    assert "one layer of this width timed here" in words(app)
    assert "launch-time" not in [button.key for button in app.button]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"stage": "lab-sink", "f.sweep": "sink=one"}, "sink takes an integer"),
        ({"stage": "lab-sink", "f.sweep": "speed=3"}, "dials are sink, rows"),
        ({"stage": "lab-layers", "f.sweep": "layers=20-40"}, "this model has layers 0-29"),
        ({"stage": "lab-lambda", "f.limit": "none of them"}, "--limit none of them: give a whole"),
        ({"stage": "probe", "f.regime": "bidirectional:sink=x"}, "sink takes an integer"),
        ({"f.limit": "x"}, "--limit x: give a whole number"),
        ({"f.limit": "0"}, "from 1 up"),
        ({"f.tasks": "there/is/none.jsonl"}, "there/is/none.jsonl' does not exist"),
        ({"stage": "custom", "f.regime": "bidirectional:sink=x"}, "sink takes an integer"),
        ({"f.tasks": "piqa,nope"}, "nknown task 'nope'"),
        ({"stage": "3B", "f.lr": "0"}, "above 0"),
        ({"stage": "pipeline", "f.regime": "causal"}, "need a bidirectional regime"),
    ],
)
def test_a_wrong_setting_is_marked_where_it_stands(root, query, says):
    """Once at the field, before everything that follows it, and once where the start would be."""
    app = open_page(PAGE, **query)
    marks = [block.proto.body for block in app.get("html") if "✕" in block.proto.body]
    assert len(marks) == 1
    assert says in words(app)
    assert says.lower() in marks[0].replace("&#x27;", "'").lower()
    assert not [button for button in app.button if button.key == "launch-start"]


def test_a_field_that_nobody_touched_is_missing_not_wrong(root):
    app = open_page(PAGE, stage="stage4")
    drawn = " ".join(block.proto.body for block in app.get("html"))
    assert "○ Choose the checkpoint" in drawn
    assert "✕" not in drawn
    assert 'class="b-down"' not in drawn


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_cpu_begins_with_minutes_and_a_gpu_with_everything(root, monkeypatch, device):
    for place in ("bidir_ui.launch.view.queue_device", "bidir_core.jobs.queue_device"):
        monkeypatch.setattr(place, lambda words: device)
    small = device == "cpu"
    assert ("--limit 100" in code(open_page(PAGE))[0]) == small
    assert ("--steps 40" in code(open_page(PAGE, stage="3B"))[0]) == small
    assert ("--preset quick" in code(open_page(PAGE, stage="pipeline"))[0]) == small
    line = code(open_page(PAGE, **{"f.limit": "all"}))[0]
    assert "--limit" not in line


def test_hours_are_asked_for_once_more(root, own_items, tiny_folder):
    for seconds in (50_000.0, 60_000.0):
        timed_run(
            root, model=str(tiny_folder), seconds=seconds, computed_tokens=2_000, device="cpu"
        )
    app = open_page(PAGE, **{"f.model": str(tiny_folder), "f.tasks": str(own_items)})
    app.button(key="launch-start").click().run()
    assert re.search(r"This takes hours: about \d+\.\d h on cpu", words(app))
    assert app.button(key="launch-confirm").disabled
    assert app.checkbox(key="launch-sure").label.startswith("Start it for about")


@pytest.mark.parametrize("key", [key for key in PRESETS if key not in ("probe", "recommend")])
def test_what_a_cpu_is_offered_at_first_takes_less_than_an_hour(key):
    """On two cores that took a quarter of an hour for a quick study, and not twenty minutes as here."""
    known = [Measured(work, MODEL, "cpu", rate=1e11) for work in ("eval", "full 3B")]
    draft = Draft(key, "quick" if PRESETS[key].command == "pipeline" else PUBLISHED, small=True)
    given = {"device": "cpu"} | ({"checkpoint": "made/here"} if key == "stage4" else {})
    config = draft.check(given).config
    assert estimate(config, "cpu", known).seconds < ask.LONG_SECONDS / 2


def test_another_sweep_begins_with_its_own_values(root):
    app = open_page(PAGE, stage="lab-sink", **{"f.sweep": "sink=3"})
    (box,) = [field for field in app.text_input if field.label == "What to vary"]
    assert box.value == "sink=3"
    (stages,) = [g for g in app.get("button_group") if "Sink sweep" in str(g.proto.options)]
    stages.set_value("lab-lambda").run()
    assert "--sweep lambda=0.001,0.01,0.1,0.3" in code(app)[0]


def test_a_sweep_runs_beside_the_controls_and_is_tried_on_five_items(root, monkeypatch):
    monkeypatch.setattr("bidir_core.jobs.queue.ensure_worker", lambda device, folder: None)
    app = open_page(PAGE, stage="lab-controls", **{"f.sweep": "sink=0,1*lambda=0.1,1|tail=1"})
    assert "--sweep 'sink=0,1*lambda=0.1,1|tail=1'" in code(app)[0]
    app.button(key="launch-dry").click().run()
    app.button(key="launch-confirm").click().run()
    (job,) = jobs.list_jobs()
    assert job.words[0] == "lab"
    assert job.words[-2:] == ("--sweep", "sink=0,1*lambda=0.1,1|tail=1")
    assert {"--controls", "--limit", "5", "dry-run"} <= set(job.words)
    assert job.title == "Controls · sink=0,1*lambda=0.1,1|tail=1 · dry run"


def test_the_probe_has_no_items_to_try(root):
    app = open_page(PAGE, stage="probe")
    assert code(app)[0] == f"python -m bidir_core probe --model {MODEL}"
    assert {b.key for b in app.button} & {"launch-start", "launch-dry"} == {"launch-start"}
    text = words(app)
    assert "Memory" in text
    assert "items," not in text


# --- their jobs --------------------------------------------------------------------------------


def test_results_of_a_sweep_open_in_the_lab_and_those_of_a_probe_are_said(root):
    sweep = make_sweep(root, regimes=["bidirectional:sink=1"], n_items=10)
    line = ("lab", "--model", MODEL, "--limit", "2", "--sweep", "sink=1")
    swept = fake(root, 1, words=line, stored_state="done", started=1.0, finished=60.0)
    (swept.folder / "runs.txt").write_text(f"{sweep.path}\n")
    asked = fake(
        root, 2, words=("probe", "--model", MODEL), stored_state="done", started=1.0, finished=9.0
    )
    asked.log.write_text(f"pass  layers: all\npassed: {MODEL} under bidirectional\n")
    app = open_page(PAGE)
    (link,) = [x.proto for x in app.get("page_link") if x.proto.label == "Open results"]
    assert link.page.endswith("lab")
    assert f"sweep={sweep.id}" in link.query_string.replace("%2F", "/")
    assert f"passed: {MODEL} under bidirectional" in words(app)


def test_the_ready_made_sweeps_are_one_line(root):
    known = {"f.model": "smollm2-135m-instruct"}
    law = open_page(PAGE, stage="lab-law", **known)
    assert code(law)[0].endswith("lab --model smollm2-135m-instruct --limit 100 --preset law")
    assert re.search(r"Points\s+19", words(law))
    order = open_page(PAGE, stage="lab-order", **known)
    assert "--preset order" in code(order)[0]
    assert f"--tasks {','.join(ORDER_PRESET_TASKS)}" in code(order)[0]
    assert re.search(r"Points\s+5", words(order))


def test_a_job_that_stopped_while_predicting_begins_again(root, monkeypatch):
    """Its run is the prediction's: no sweep is there to be gone on with, or finished."""
    monkeypatch.setattr("bidir_core.jobs.queue.ensure_worker", lambda device, folder: None)
    job = jobs.submit(["lab", "--model", "m", "--preset", "law"])
    writer = RunWriter.create("lab", {"model": "m"}, root=root, kind="recommend")
    (job.folder / "runs.txt").write_text(f"{writer.path}\n")
    writer.finish(metrics={})
    assert replace(job, stored_state="running").fate() == "lost"
    assert _run_to_resume(job) is None
    sweep = RunWriter.create("lab", {"model": "m"}, root=root, kind="lab")
    (job.folder / "runs.txt").write_text(f"{writer.path}\n{sweep.path}\n")
    assert _run_to_resume(job) == str(sweep.path)
