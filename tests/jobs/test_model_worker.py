"""The model worker: it loads, answers, refuses, is cancelled, idles out, and dies with its parent."""

import os
import queue
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from bidir_core.common.errors import UserError
from bidir_core.explain.generate import Sampling, encode_prompt, generate
from bidir_core.explain.why_search import rescore
from bidir_core.jobs import child_environment, playground_server
from bidir_core.jobs.playground import Answer, ModelWorker
from bidir_core.models import loading, probe
from bidir_core.models.families import tiny_loaded
from bidir_core.regimes import parse_regime
from tests.explain.test_generate import drop_the_mask
from tests.factory import until

LONG = 60.0


@pytest.fixture(scope="module")
def worker(tiny_folder):
    started = ModelWorker()
    started.start(str(tiny_folder))
    assert started.state == "loading"
    until(lambda: started.state != "loading")
    assert started.state == "ready", started.log_tail()
    yield started
    started.stop()
    assert started.state == "none"


def ask(worker, **changes):
    settings = {"prompt": "What then?", "regimes": ["causal", "bidirectional"]}
    name = worker.ask(**{**settings, "sampling": {"max_new_tokens": 5}, **changes})
    until(lambda: not worker.answer(name).is_open)
    return worker.answer(name)


def test_it_answers_as_the_library_does(worker, tiny_folder):
    answer = ask(worker, bos="add")
    assert answer.state == "done"
    loaded = loading.load(str(tiny_folder), device="cpu")
    ids = encode_prompt(loaded, "What then?", bos="add").ids
    assert answer.n_prompt == len(ids)
    for regime, side in zip(answer.regimes, answer.sides, strict=True):
        ours = generate(loaded, ids, regime, Sampling(5))
        assert "visible_keys" in side["probe"]["checks"]
        assert side["text"] == ours.text
        assert [step["text"] for step in side["steps"]] == [s.chosen.text for s in ours.steps]
        told = side["steps"][0]["top"][0][1]
        assert told == pytest.approx(ours.steps[0].top[0].logprob, abs=1e-4)
    assert worker.facts["n_layers"] == loaded.n_layers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"regimes": ["bidirectional:layers=0-99"]}, "layer 99 does not exist"),
        ({"prompt": "x" * 600}, "window holds 512"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "x" * 100_001}, "longer than"),
        ({"sampling": {"top_p": 3}}, "--top-p"),
        ({"sampling": {"nonsense": 3}}, "TypeError"),
        ({"chat_template": True}, "no chat template"),
    ],
)
def test_a_bad_request_is_answered_and_the_model_stays(worker, changes, says):
    answer = ask(worker, **changes)
    assert answer.state == "error"
    assert says in answer.error
    assert worker.state == "ready"
    assert ask(worker).state == "done"


def test_it_scores_an_item_again_with_layers_and_tokens_left_causal(worker, tiny_folder):
    request = (["What then?"], [" this", " that"], "bidirectional")
    edits = {"causal_layers": [0], "causal_tokens": [0, 2]}
    name = worker.rescore(*request, **edits)
    until(lambda: not worker.answer(name).is_open)
    answer = worker.answer(name)
    assert answer.state == "done", answer.error
    loaded = loading.load(str(tiny_folder), device="cpu")
    ours = rescore(loaded, request[0], request[1], parse_regime("bidirectional"), **edits)
    for reading, ll in ours["ll"].items():
        assert answer.result["ll"][reading] == pytest.approx(ll, abs=1e-3)
    assert answer.result["pieces"] == ours["pieces"]
    wrong = worker.rescore(*request, causal_tokens=[99])
    until(lambda: not worker.answer(wrong).is_open)
    assert "token 99 does not exist" in worker.answer(wrong).error


def served(requests, cancelled=()):
    """The events with which a worker answers requests."""
    inbox = SimpleNamespace(requests=queue.Queue(), cancelled=set(cancelled))
    for request in (*requests, {"op": "stop"}):
        inbox.requests.put({"op": "generate", "prompt": "What then?"} | request)
    events = []
    playground_server.serve(
        tiny_loaded("llama"), inbox, lambda event, **values: events.append((event, values)), LONG
    )
    return events


def test_a_regime_is_probed_once_and_refused_as_often_as_it_is_asked_for(monkeypatch):
    drop_the_mask(monkeypatch)
    probed = []

    def counted(loaded, regime):
        probed.append(str(regime))
        return honest(loaded, regime)

    honest = probe.run_probe
    monkeypatch.setattr(probe, "run_probe", counted)
    short = {"sampling": {"max_new_tokens": 1}}
    asked = [["causal"], ["causal", "bidirectional"], ["bidirectional"]]
    events = served([{"id": n, "regimes": r} | short for n, r in enumerate(asked)])
    assert probed == ["causal", "bidirectional"]
    by_request = [[kind for kind, values in events if values["id"] == str(n)] for n in range(3)]
    assert by_request == [
        ["begin", "probe", "step", "end", "done"],
        ["begin", "probe", "error"],
        ["begin", "error"],
    ]
    assert "does not attend as 'bidirectional' says" in events[-1][1]["message"]


def test_an_answer_can_be_cancelled(worker):
    name = worker.ask("What then?", ["causal"] * 50, {"max_new_tokens": 400})
    until(lambda: worker.answer(name).sides[0]["steps"])
    worker.cancel(name)
    until(lambda: not worker.answer(name).is_open)
    assert worker.answer(name).state == "cancelled"
    assert worker.answer("nothing") is None


def test_a_model_that_cannot_be_loaded_says_why(tmp_path, pretended, monkeypatch):
    worker = ModelWorker()
    worker.start(str(tmp_path))
    until(lambda: worker.state != "loading")
    assert worker.state == "failed"
    assert worker.error == f"there is no model in {tmp_path}"
    with pytest.raises(UserError, match="load it first"):
        worker.ask("x", ["causal"], {})
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    with pytest.raises(UserError, match="read-only"):
        worker.start("anything")


def test_idle_it_ends_by_itself_and_killed_it_is_told_so(tiny_folder, pretended):
    worker = ModelWorker()
    worker.start(str(tiny_folder), idle_seconds=0.2)
    process = psutil.Process(worker.pid)
    until(lambda: worker.state not in ("loading", "ready"))
    assert worker.state == "idle"
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    worker.start(str(tiny_folder), idle_seconds=LONG)
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: worker.state != "loading")
    assert worker.state == "died"
    assert "signal 9" in worker.error
    worker.stop()


def test_asked_in_the_moment_it_goes_idle_the_answer_does_not_stay_open():
    class Ending:
        stdout = ('{"event": "idle"}\n',)

        def wait(self) -> int:
            return 0

    worker = ModelWorker()
    worker._process, worker._state = Ending(), "ready"
    worker._answers["asked"] = Answer(("causal",))
    worker._read(worker._process)
    assert worker.state == "idle"
    assert worker.answer("asked").state == "error"
    assert "load it again" in worker.answer("asked").error


def test_it_never_outlives_the_process_that_started_it(tiny_folder):
    code = (
        "import sys, time; from bidir_core.jobs.playground import shared\n"
        f"w = shared(); w.start({str(tiny_folder)!r}); print(w.pid, flush=True)\n"
        "assert 'torch' not in sys.modules\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()  # without a chance to clean up
    parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
