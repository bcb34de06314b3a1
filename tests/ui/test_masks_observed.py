"""The Masks page with observed attention, in its states, without a browser."""

import json

import pytest

from bidir_core import jobs
from tests.app import fake_job
from tests.attend_factory import make_attend, make_summary
from tests.factory import make_run, unsealed
from tests.ui.test_app_pages import open_page, words

PAGE = "pages/masks.py"


def look(run=None, **query):
    app = open_page(PAGE, **({"attend": run.id} if run else {"show": "observed"}), **query)
    text = words(app)
    assert "could not be read" not in text
    return app, text


def test_two_regimes(root):
    app, text = look(make_attend(root), layer="1", head="2", q="3", k="6")
    assert "causal : " in text
    assert "bidirectional : " in text
    assert "to later tokens" in text
    assert "n = 1" in text.replace("\u00a0", " ")
    assert "Token 3," in text
    assert "may not" in text  # causal, token 6 lies ahead
    assert "may, looking ahead" in text
    assert "−3.25 nats" in text
    assert len(app.get("plotly_chart")) == 4


@pytest.mark.parametrize(
    ("part", "n_charts", "expected"),
    [
        ("landing", 3, "a sink that moved"),
        ("drift", 4, "1: the same direction in both"),
        ("nonsense", 4, "Click a cell to read it"),
    ],
)
def test_a_closer_look_is_one_part_at_a_time(root, part, n_charts, expected):
    app, text = look(make_attend(root), part=part)
    assert len(app.get("plotly_chart")) == n_charts
    assert expected in text


@pytest.mark.parametrize(("view", "n"), [("seen", 2), ("difference", 1), ("asked", 2), ("x", 2)])
def test_every_picture_is_drawn(root, view, n):
    app, text = look(make_attend(root, window=3), see=view, measure="entropy", layer="99", q="-1")
    assert len(app.get("plotly_chart")) == 2 + n
    assert "nearer than 3 tokens" in text
    if view == "difference":
        assert "hidden in both" in text


def test_one_regime(root):
    run = make_attend(root, ["bidirectional:lambda=0.5"])
    app, text = look(run, q="2", k="5")
    assert "λ = 0.5" in text
    options = [str(option) for group in app.get("button_group") for option in group.options]
    assert "Requested" in options
    assert "Difference" not in options
    assert "nothing to compare" in look(run, part="drift")[1]


def test_too_long_shows_the_rest_and_says_why(root):
    run = make_attend(root, matrices=False, n_total=60, n_prefix=50)
    app, text = look(run, part="head")
    assert "No attention weights of single heads" in text
    assert "only shares and drift are stored" in text
    assert "a sink that moved" in text  # the first part there is
    assert len(app.get("plotly_chart")) == 3
    assert len(look(run, part="drift")[0].get("plotly_chart")) == 4


def test_averages_over_items(root):
    app, text = look(make_summary(root))
    assert "5 items of PIQA" in text
    assert "95 % intervals" in text.replace("\u00a0", " ")
    assert len(app.get("plotly_chart")) == 4
    assert "By task" not in text


def test_averages_over_tasks_under_three_regimes(root):
    regimes = ("causal", "bidirectional", "bidirectional:sink=1")
    run = make_summary(root, regimes, tasks=("piqa", "arc_easy"))
    app, text = look(run, measure="entropy")
    assert "10 items of 2 tasks" in text
    assert "bidirectional:sink=1 :" in text
    assert "By task" in text
    entropy = run.metrics["observed"][2]["by_task"]["arc_easy"]["entropy"]
    assert f"{entropy['mean'][0]:.2f} [{entropy['low'][0]:.2f}, {entropy['high'][0]:.2f}]" in text
    assert len(app.get("plotly_chart")) == 4


def test_none_says_how_and_queues_it_once(root, monkeypatch):
    started = []
    monkeypatch.setattr(jobs, "submit", lambda words, key, **_: started.append((words, key)))
    make_run(root, n_items=10)
    app, text = look(item="piqa/3", regime="bidirectional:sink=1")
    assert "Not observed yet" in text
    line = "attend --model smollm2-135m-instruct --task piqa --doc-id 3"
    assert f"python -m bidir_core {line} --regime causal --regime bidirectional:sink=1" in text
    app.button(key="observe-start").click().run()
    app.button(key="observe-confirm").click().run()
    ((given, key),) = started
    assert " ".join(given).startswith(line)
    assert key


def test_a_job_that_observes_it_shows_progress_and_can_be_cancelled(root, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "cancel", asked.append)
    make_run(root, n_items=10)
    line = ("attend", "--model", "smollm2-135m-instruct", "--task", "piqa", "--doc-id", "3")
    both = ("--regime", "causal", "--regime", "bidirectional")
    job = fake_job(root, (*line, *both))
    app, text = look(item="piqa/3")
    assert "Queued" in text
    app.button(key=f"cancel-{job.id}").click().run()
    assert asked == [job.id]


def test_a_prompt_of_ones_own_is_offered_too(root):
    _, text = look(prompt="Two words", cont=" here")
    assert "Nothing observed here yet" in text
    assert "--prompt 'Two words' --continuation ' here'" in text


def test_read_only_offers_the_line_but_no_button(root, monkeypatch):
    make_run(root, n_items=10)
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    app, text = look(item="piqa/3")
    assert "python -m bidir_core attend" in text
    assert not [button for button in app.button if button.key == "observe-start"]


def test_the_item_s_own_run_is_found(root):
    make_attend(root, item="piqa/4")
    run = make_attend(root, item="piqa/3")
    make_attend(root, item="piqa/5")
    app, text = look(item="piqa/3")
    assert app.selectbox(key="url:attend").value == run.id
    assert "PIQA 3" in text


def test_another_text_than_the_item_is_said(root):
    _, text = look(make_attend(root, item="piqa/4"), item="piqa/3")
    assert "Another text than the item in this link" in text


def test_an_unknown_run_is_not_found_and_nothing_stands_in(root):
    make_attend(root)
    app = open_page(PAGE, attend="lab/20200101-000000")
    assert "Not found" in words(app)
    assert "Under causal" not in words(app)


def test_a_run_of_another_kind_is_not_an_observation(root):
    run = make_run(root, n_items=10)
    assert "Not found" in words(open_page(PAGE, attend=run.id))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        ("matrix", "attention_0/layer_02.npz of the run"),
        ("tokens", "is corrupt: tokens.json is not what was written"),
        ("shares", "shares.npz of the run"),
        ("metrics", "is corrupt: metrics.json: 'observed' is not a list"),
        ("layers", "do not cover its layers"),
        ("mixed", "are not of one run"),
        ("failed", "is failed: out of memory"),
    ],
)
def test_damage_is_told_in_words(root, harm, expected):
    run = make_attend(root)
    if harm != "tokens":
        unsealed(run)  # as damage that checksums did not see
    metrics = json.loads((run.path / "metrics.json").read_text())
    if harm == "matrix":
        path = run.path / "attention_0" / "layer_02.npz"
        path.write_bytes(path.read_bytes()[:120])
    elif harm == "tokens":
        (run.path / "tokens.json").write_text('{"pieces": 3}')
    elif harm == "shares":
        (run.path / "shares.npz").unlink()
    elif harm == "metrics":
        (run.path / "metrics.json").write_text(json.dumps({**metrics, "observed": "x"}))
    elif harm == "layers":
        (run.path / "metrics.json").write_text(json.dumps({**metrics, "n_layers": 5}))
    elif harm == "mixed":
        other = make_attend(root, n_total=20)
        (other.path / "attention_0" / "layer_02.npz").replace(
            run.path / "attention_0" / "layer_02.npz"
        )
    else:
        (run.path / "metrics.json").unlink()
        status = json.loads((run.path / "status.json").read_text())
        status.update(state="failed", error="out of memory")
        (run.path / "status.json").write_text(json.dumps(status))
    _, text = look(run, layer="2")
    assert expected in text


def test_requested_shows_the_observed_text(root):
    run = make_attend(root, ["causal", "bidirectional:sink=2"], pieces=[" <b>x</b>"] * 12)
    app, text = look(run, show="requested")
    assert "8 prefix and 4 continuation" in text
    assert "bidirectional:sink=2" in text
    assert app.get("plotly_chart")
