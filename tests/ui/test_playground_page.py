"""The Playground without a browser: its states, what it asks, and that answers are inert."""

import time

import pytest

from bidir_core.jobs import playground
from bidir_core.jobs.playground import Answer, ModelWorker
from tests.ui.test_app_pages import open_page, words

PAGE = "pages/playground.py"
HOSTILE = '<img src="http://evil.example/x.png">'


class Pretended(ModelWorker):
    """A worker in any state, without a process."""

    def __init__(self, state="none", error="", answer=None):
        super().__init__()
        self._state, self.error = state, error
        self.model, self.started = "smollm2-135m-instruct", time.time()
        self.facts = (
            {"n_layers": 30, "dtype": "float32", "device": "cpu"} if state == "ready" else {}
        )
        self.asked: list[tuple] = []
        self._given = answer

    def start(self, *arguments, **options):
        self.asked.append(("start", *arguments))
        self._state = "loading"

    def stop(self):
        self.asked.append(("stop",))
        self._state = "none"

    def ask(self, prompt, regimes, sampling, **options):
        self.asked.append(("ask", prompt, regimes, sampling, options))
        return "one"

    def answer(self, name):
        return self._given if name == "one" else None

    def log_tail(self, n_bytes=4000):
        return f"Traceback {HOSTILE}"


@pytest.fixture
def pretend(monkeypatch):
    def make(*arguments, **options):
        worker = Pretended(*arguments, **options)
        monkeypatch.setattr(playground, "_shared", worker)
        return worker

    return make


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("none", "No model loaded"),
        ("loading", "Loading"),
        ("ready", "30 layers, float32 on cpu"),
        ("idle", "The model was let go"),
        ("failed", "The model could not be loaded"),
        ("died", "The model's process is gone"),
    ],
)
def test_every_state_of_the_model_is_said(root, pretend, state, says):
    pretend(state, error=f"why {HOSTILE}" if state in ("failed", "died") else "")
    app = open_page(PAGE)
    assert says in words(app)
    keys = {button.key for button in app.button}
    assert ("pg-generate" in keys) is (state == "ready")
    assert ("pg-stop" in keys) is (state in ("loading", "ready"))
    assert ("pg-load" in keys) is (state not in ("loading", "ready"))
    assert all("<img" not in block.proto.body for block in app.get("html"))


def test_loading_is_asked_once_before(root, pretend):
    worker = pretend("none")
    app = open_page(PAGE)
    app.button(key="pg-load").click().run()
    assert not worker.asked
    assert "in memory, about" in words(app)
    assert "Fetched first" in words(app)  # the test's cache is empty
    app.button(key="pg-confirm").click().run()
    assert worker.asked == [("start", "smollm2-135m-instruct", "")]


def test_a_link_asks_the_same_and_both_sides_are_drawn_inert(root, pretend):
    top = [[HOSTILE, -0.1], [" x\n", -3.0]]
    step = {"text": HOSTILE, "logprob": -0.1, "top": top}
    sides = [
        {"probe": {"checks": ["visible_keys"]}, "steps": [step], "text": HOSTILE, "ended": True},
        {"probe": None, "steps": [], "text": "", "ended": None},
    ]
    given = Answer(("causal", "bidirectional:sink=1"), "done", n_prompt=7, sides=sides)
    worker = pretend("ready", answer=given)
    query = {"prompt": "Hi there", "against": "bidirectional:sink=1", "n": "5", "t": "0.7"}
    query |= {"p": "0.9", "seed": "4"}
    app = open_page(PAGE, **query)
    app.button(key="pg-generate").click().run()
    (asked,) = worker.asked
    sampling = {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 4}
    assert asked == (
        "ask",
        "Hi there",
        ["causal", "bidirectional:sink=1"],
        sampling,
        {"chat_template": False},
    )
    text = words(app)
    assert "prompt of 7 tokens" in text
    assert "Mask probe: 1 checks passed" in text
    assert "the text ends here" in text
    assert "90.5 %" in text
    assert "␣x↵" in text
    assert all("<img" not in block.proto.body for block in app.get("html"))


def test_bad_regimes_and_answers_that_failed(root, pretend):
    pretend("ready", answer=Answer(("causal",), "error", error=f"too long {HOSTILE}"))
    app = open_page(PAGE, regime="sideways")
    assert "Not a regime" in words(app)
    assert not [button for button in app.button if button.key == "pg-generate"]
    app = open_page(PAGE, n="x", t="-5", seed="")
    app.button(key="pg-generate").click().run()
    assert "too long" in words(app)
