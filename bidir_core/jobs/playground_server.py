"""``serve-model``: one model behind standard input and output, a JSON object a line.

The app starts it when somebody wants to try a model (its own process never imports torch). It
ends when it has been idle, when told to, and in the moment its input closes, so that it never
outlives the server that started it.

In:  ``{"op": "generate", "id": .., "prompt": .., "regimes": [..], "sampling": {..}, "bos": ..,
"chat_template": ..}``, ``{"op": "rescore", "id": .., "contexts": [..], "continuations": [..],
"regime": .., "causal_layers": [..], "causal_tokens": [..], "bos": ..}``, ``{"op": "cancel", "id":
..}``, ``{"op": "stop"}``.
Out: ``{"event": ..}`` with ``loading``, ``ready``, ``failed`` (and why), ``idle``; and for a request
``begin`` (its prompt as tokens), ``probe`` (the mask probe's checks of a regime that is in force;
each regime is probed once, and one that is not is an ``error``), ``step`` (a token, with its alternatives), ``end`` of a regime,
``rescored`` (log-likelihoods per choice), ``done``, ``cancelled`` or ``error``.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from bidir_core.common.errors import UserError

if TYPE_CHECKING:
    from bidir_core.models.loading import LoadedModel
    from bidir_core.models.probe import Prober

IDLE_SECONDS = 300.0

MAX_PROMPT_CHARACTERS = 100_000
MAX_WAITING = 32

Say = Callable[..., None]


class Inbox:
    """Requests as they arrive; cancels take effect at once. ``closed`` is called at the end,
    ``refuse`` with the id of a request that finds the queue full."""

    def __init__(self, stream: TextIO, closed: Callable[[], None], refuse: Callable[[str], None]):
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue(MAX_WAITING)
        self.cancelled: set[str] = set()
        self._stream, self._closed, self._refuse = stream, closed, refuse
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            try:
                request = json.loads(line)
            except ValueError:
                continue
            if not isinstance(request, dict):
                continue
            if request.get("op") == "cancel":
                self.cancelled.add(str(request.get("id")))
            else:
                try:
                    self.requests.put_nowait(request)
                except queue.Full:
                    self._refuse(str(request.get("id"))[:200])
        self._closed()


def serve(loaded: LoadedModel, inbox: Inbox, say: Say, idle_seconds: float) -> None:
    """Answer one request after another, until told to stop or left alone."""
    from bidir_core.models.probe import Prober

    prober = Prober(loaded)
    while True:
        try:
            request = inbox.requests.get(timeout=idle_seconds)
        except queue.Empty:
            say("idle")
            return
        if request.get("op") == "stop":
            return
        name = str(request.get("id"))
        try:
            _answer(loaded, prober, request, name, inbox, say)
        except UserError as error:
            say("error", id=name, message=str(error))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            # A bad request or a full GPU must not take the model down with it.
            say("error", id=name, message=f"{type(error).__name__}: {str(error)[:300]}")


def _answer(
    loaded: LoadedModel, prober: Prober, request: dict[str, Any], name: str, inbox: Inbox, say: Say
) -> None:
    from bidir_core.explain.generate import Sampling, check, encode_prompt, end_ids, stream

    if request.get("op") == "rescore":
        _rescore(loaded, prober, request, name, say)
        return
    if request.get("op") != "generate":
        raise UserError(f"unknown request '{str(request.get('op'))[:40]}'")
    text = str(request["prompt"])
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise UserError(f"the prompt is longer than {MAX_PROMPT_CHARACTERS:,} characters")
    sampling = Sampling(**request.get("sampling") or {})
    bos, chat_template = str(request.get("bos") or "auto"), bool(request.get("chat_template"))
    prompt = encode_prompt(loaded, text, bos=bos, chat_template=chat_template)
    regimes = [check(loaded, prompt.ids, regime, sampling) for regime in request["regimes"]]
    say("begin", id=name, n_prompt=len(prompt.ids), text=prompt.text)
    for index, regime in enumerate(regimes):
        if name in inbox.cancelled:
            say("cancelled", id=name)
            return
        report = prober.require(regime)
        checks = [result.name for result in report.checks]
        say("probe", id=name, index=index, checks=checks, seconds=report.seconds)
    ends = end_ids(loaded)
    for index, regime in enumerate(regimes):
        ids: list[int] = []
        for step in stream(loaded, prompt.ids, regime, sampling):
            if name in inbox.cancelled:
                say("cancelled", id=name)
                return
            ids.append(step.chosen.token_id)
            top = [[token.text, token.logprob] for token in step.top]
            chosen = {"text": step.chosen.text, "logprob": step.chosen.logprob}
            say("step", id=name, index=index, **chosen, top=top)
        ended = ids[-1] in ends
        completion = loaded.tokenizer.decode(ids[:-1] if ended else ids)
        say("end", id=name, index=index, text=completion, ended=ended)
    say("done", id=name)


def _rescore(
    loaded: LoadedModel, prober: Prober, request: dict[str, Any], name: str, say: Say
) -> None:
    from bidir_core.explain.why_search import rescore
    from bidir_core.regimes import parse_regime

    regime = parse_regime(str(request["regime"]))
    regime.check_layers(loaded.n_layers)
    prober.require(regime)
    result = rescore(
        loaded,
        [str(text) for text in request["contexts"]],
        [str(text) for text in request["continuations"]],
        regime,
        causal_layers=[int(layer) for layer in request.get("causal_layers") or ()],
        causal_tokens=[int(token) for token in request.get("causal_tokens") or ()],
        bos=str(request.get("bos") or "auto"),
    )
    say("rescored", id=name, result=result)
    say("done", id=name)
