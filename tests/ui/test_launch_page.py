"""The Launch page without a browser: every stage's line is one the terminal takes; its states."""

import shlex
import time
from typing import Any
from urllib.parse import parse_qs

import pytest

from bidir_core import cli, jobs
from bidir_core.common.process import this_process
from bidir_core.common.settings import settings_of
from bidir_core.data import assets
from bidir_core.evaluate.config import EvalConfig, ProbeConfig
from bidir_core.explain.configs import RecommendConfig
from bidir_core.explain.sweep_points import LabConfig
from bidir_core.jobs import Job
from bidir_core.jobs.pipeline_config import from_preset
from bidir_core.runs.run import Run
from bidir_core.train.config import FinetuneConfig
from bidir_ui.launch.form import CLASSES, PRESETS
from tests.app import STAGE2, fake_job, open_page, pair, words
from tests.factory import make_run
from tests.report_runs import make_finetune

PAGE = "pages/launch.py"
HOSTILE = '<img src="http://evil.example/x.png">[a](http://evil.example)'


def code(app) -> list[str]:
    return [block.value for block in app.code]


def parsed(line: str):
    """What the command line makes of a shown line."""
    program = "python -m bidir_core "
    assert line.startswith(program)
    arguments = shlex.split(line)[3:]
    given = vars(cli.build_parser().parse_args(arguments))
    assert callable(given.pop("run"))
    return arguments[0], given


@pytest.mark.parametrize("stage", PRESETS)
def test_every_stage_shows_a_line_that_the_terminal_takes(root, stage):
    query = {"f.checkpoint": "some/final"} if stage == "stage4" else {}
    app = open_page(PAGE, stage=stage, **{"f.seed": "3", "f.batch_tokens": "900", **query})
    name, given = parsed(code(app)[0])
    assert name == PRESETS[stage].command
    given.pop("resume", None)
    defaults = dict(PRESETS[stage].fixed + PRESETS[stage].begins)
    if name == "probe":
        given.pop("json")
        assert ProbeConfig(**given).regime == "bidirectional"
        return
    if name == "recommend":
        assert RecommendConfig(**given).batch_tokens == 900
        assert "of each point" not in words(app)  # a pass a layer, not a sweep's points
        assert "How this is known" in words(app)
        return
    config: Any
    if name == "lab":
        config = LabConfig(**given | {"sweep": tuple(given.get("sweep", ()))})
        assert config.sweep == ((defaults["sweep"],) if "sweep" in defaults else ())
        assert config.controls == (stage == "lab-controls")
        assert config.limit == 100
    elif name == "pipeline":
        preset = given.pop("preset")
        config = from_preset(
            {k: v for k, v in given.items() if k not in ("out", "csv", "dry_run")}, preset
        )
    elif name == "finetune":
        config = FinetuneConfig(**given)
        assert config.objective == stage
    else:
        config = EvalConfig(**given)
        assert config.regime == defaults["regime"]
    assert config.seed == 3
    assert "About" not in code(app)[0]
    assert "How this is known" in words(app)


def test_a_link_shows_the_same_form_with_all_kinds_of_settings(root):
    query = {"stage": "custom", "f.regime": "bidirectional:sink=1,lambda=0.03"}
    query |= {"f.tasks": "piqa,arc_easy", "f.limit": "50", "f.compact": "yes"}
    query |= {"f.sample": "stratified", "f.model": "Qwen/Qwen3-0.6B"}
    app = open_page(PAGE, **query)
    line = code(app)[0]
    for part in (
        "--regime bidirectional:sink=1,lambda=0.03",
        "--tasks piqa,arc_easy",
        "--limit 50",
        "--compact",
        "--sample stratified",
        "--model Qwen/Qwen3-0.6B",
    ):
        assert part in line
    assert "the benchmarks are not on this machine" in words(app)  # so they are not counted


@pytest.mark.parametrize("page", [PAGE, "pages/playground.py"])
def test_a_link_fills_no_field_beyond_its_length(root, page):
    names = [f"f.{spec.name}" for config in CLASSES.values() for spec in settings_of(config)]
    long = dict.fromkeys({*names, "regime", "against"}, "x" * 5_000) | {"prompt": "x" * 30_000}
    app = open_page(page, **long)
    fields = [*app.text_input, *app.text_area]
    assert sum("x" * 100 in field.value for field in fields) > 1
    assert all(len(field.value) <= (field.proto.max_chars or 0) for field in fields)
    assert len(words(app)) < 50_000


def test_the_question_names_what_is_fetched_and_a_second_start_is_the_same_job(root, monkeypatch):
    monkeypatch.setattr("bidir_core.jobs.queue.ensure_worker", lambda device, folder: None)
    app = open_page(PAGE, stage="stage2")
    app.button(key="launch-dry").click().run()
    assert {asset.name for asset in assets.missing()} == set(assets.default_names())
    text = words(app)
    assert all(name in text for name in assets.default_names())
    confirm = app.button(key="launch-confirm")
    assert confirm.label == "Fetch 0.2 GB and start"
    confirm.click().run()
    (job,) = jobs.list_jobs()
    assert " ".join(job.words).endswith("--limit 5 --regime bidirectional --name dry-run")
    assert "dry run" in job.title


def fake(root, number: int, **values) -> Job:
    line = values.pop("words", ("eval", "--model", "m"))
    return fake_job(root, line, number=number, **values)


def test_each_state_of_a_job_is_shown_with_what_can_be_done(root):
    gone = {"pid": 2**22 + 1, "pid_started": 1.0}
    waiting = fake(root, 1)
    lost = fake(root, 2, stored_state="running", process=gone, started=time.time())
    failed = fake(root, 3, stored_state="failed", error=HOSTILE, title=HOSTILE)
    done = fake(
        root, 4, stored_state="done", started=1.0, finished=201.0, estimate={"seconds": 180}
    )
    failed.log.write_text(f"error: {HOSTILE}\n")
    (root / ".jobs" / "20260101-000009-abcdef").mkdir()  # torn: no job.json
    app = open_page(PAGE)
    text = words(app)
    keys = {button.key for button in app.button}
    assert "The queue of cpu stands still" in text
    assert {f"cancel-{waiting.id}", f"resume-{lost.id}", f"resume-{failed.id}"} <= keys
    assert f"resume-{done.id}" not in keys
    assert "gone without a word" in text
    assert "Took 3 min 20 s (estimated 3 min)" in text
    assert all("<img" not in block.proto.body for block in app.get("html"))
    app.session_state[f"more-{failed.id}"] = True  # the log is read when it is looked at
    app.run()
    assert any(HOSTILE in value for value in code(app))


def test_a_job_at_its_end_is_not_said_to_start(root):
    run = make_run(root, n_items=20)
    for number, more, says in ((1, {}, "Finishing"), (2, {"cancel_at": time.time()}, "Stopping")):
        job = fake(root, number, stored_state="running", process=this_process(), **more)
        (job.folder / "runs.txt").write_text(f"{run.path}\n")
        text = words(open_page(PAGE))
        assert says in text
        assert "Starting" not in text


@pytest.mark.parametrize(
    ("accuracy", "shown"),
    [
        # Of four items: where the share's normal interval has no width.
        (1.0, "acc so far 100.0 % (95 % Wilson interval 51.0 to 100.0 %, n = 4)"),
        (0.0, "acc so far 0.0 % (95 % Wilson interval 0.0 to 49.0 %, n = 4)"),
    ],
)
def test_the_accuracy_of_few_items_has_an_interval_within_bounds(root, accuracy, shown):
    run = make_run(root, n_items=8, state="running", accuracy=accuracy)
    job = fake(root, 1, stored_state="running", process=this_process())
    (job.folder / "runs.txt").write_text(f"{run.path}\n")
    assert shown in words(open_page(PAGE)).replace("\u00a0", " ")


def results_link(root, run: Run, **query: str) -> tuple[str, dict[str, list[str]]]:
    """Where a job that made this run sends its reader: page, query."""
    state = run.state if run.state in ("done", "failed", "cancelled") else "lost"
    job = fake(root, 1, stored_state=state, started=1.0, finished=60.0)
    (job.folder / "runs.txt").write_text(f"{run.path}\n")
    links = open_page(PAGE, **query).get("page_link")
    (link,) = [x.proto for x in links if x.proto.label == "Open results"]
    return link.page.rpartition("/")[2], parse_qs(link.query_string.removeprefix("?"))


def test_results_open_beside_a_run_of_the_same_items(root):
    """Not beside the pair that other pages show by default, nor the one that was chosen before."""
    default, _ = pair(root, config={"limit": 500})
    wanted = make_run(root, n_items=20, config={"limit": 20})
    make_run(root, n_items=20, config={"limit": 20}, state="lost")
    b = make_run(root, STAGE2, n_items=20, config={"limit": 20}, regime="bidirectional")
    page, query = results_link(root, b, a=default.id, intersect="yes")
    assert page == "compare"
    assert query == {"a": [wanted.id], "b": [b.id]}
    assert not open_page("pages/compare.py", **{k: v for k, (v,) in query.items()}).exception


def test_partial_results_open_with_the_items_that_both_hold(root):
    pair(root, config={"limit": 500})
    stage1 = make_run(root, n_items=40)
    b = make_run(root, STAGE2, n_items=40, state="cancelled", regime="bidirectional")
    page, query = results_link(root, b)
    assert page == "compare"
    assert query == {"a": [stage1.id], "b": [b.id], "intersect": ["yes"]}
    app = open_page("pages/compare.py", **{k: v for k, (v,) in query.items()})
    assert "cancelled: 20 of 40 items so far" in words(app)
    assert "Only the items that both runs hold are compared" in words(app)
    assert "do not pair" not in words(app)
    drill = "".join(block.proto.body for block in app.get("html"))
    assert "flips?" in drill
    assert drill.count("flips?") == drill.count("intersect=yes")


@pytest.mark.parametrize("state", ["cancelled", "queued", "done"])
def test_results_without_a_baseline_are_on_the_run_s_own_page(root, state):
    pair(root, config={"limit": 500})
    b = make_run(root, STAGE2, n_items=20, state=state, regime="bidirectional")
    page, query = results_link(root, b)
    assert page == "run"
    assert query["id"] == [b.id]


def test_a_waiting_job_is_cancelled(root):
    job = fake(root, 1)
    app = open_page(PAGE)
    app.button(key=f"cancel-{job.id}").click().run()
    assert jobs.find_job(job.id).state == "cancelled"
    assert "Never started" in words(app)


def test_a_checkpoint_trained_under_another_mask_is_named_before_the_start(root):
    """And a leaky one; a checkpoint whose folder is unknown here says nothing."""
    finetune = make_finetune(root, "3A", evals=False)
    (finetune.path / "final").mkdir()
    query = {"stage": "stage4", "f.checkpoint": str(finetune.path / "final")}
    text = words(open_page(PAGE, **query))
    assert "3A is leaky" in text
    assert "trained under" not in text
    sweep = words(open_page(PAGE, **query | {"stage": "lab-sink"}))  # it has both regimes
    assert "3A is leaky" in sweep
    assert "trained under" not in sweep
    text = words(open_page(PAGE, **query, **{"f.regime": "causal"}))
    assert "trained under bidirectional; here it is evaluated under causal" in text
    assert "trained under" not in words(open_page(PAGE, stage="stage4", **{"f.checkpoint": "x/y"}))
