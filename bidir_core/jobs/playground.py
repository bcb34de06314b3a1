"""The app's side of ``serve-model``: start it, ask it, stop it. Needs no torch.

One worker serves the whole app. It is a child whose input pipe this process holds: when this
process ends, however it ends, the pipe closes and the worker goes too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bidir_core.common.errors import UserError
from bidir_core.jobs import child_environment
from bidir_core.runs.layout import refuse_if_read_only

WorkerState = Literal["none", "loading", "ready", "failed", "died", "idle"]
KEPT_ANSWERS = 16


@dataclass
class Answer:
    """What a request has brought so far. ``sides``: one a regime, in the order asked."""

    regimes: tuple[str, ...]
    state: Literal["waiting", "running", "done", "cancelled", "error"] = "waiting"
    error: str = ""
    prompt: str = ""
    n_prompt: int = 0
    sides: list[dict[str, Any]] = field(default_factory=list)  # probe, steps, text, ended
    result: dict[str, Any] = field(default_factory=dict)  # of rescoring an item

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "running")


class ModelWorker:
    """A model in a process of its own. Safe to use from several sessions at once."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None
        self._state: WorkerState = "none"
        self._log: Any = None
        self.error = ""
        self.model = self.checkpoint = ""
        self.facts: dict[str, Any] = {}
        self.started = 0.0
        self._answers: dict[str, Answer] = {}

    @property
    def state(self) -> WorkerState:
        """What to show. ``died``: it ended unexpectedly; ``idle``: it ended by itself, unused."""
        return self._state

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, model: str, checkpoint: str = "", *, idle_seconds: float = 300.0) -> None:
        """Load a model in place of the previous one; nothing happens if it is loaded already."""
        refuse_if_read_only("load a model")
        with self._lock:
            same = (self.model, self.checkpoint) == (model, checkpoint)
            if same and self.state in ("loading", "ready"):
                return
            self.stop()
            line = [sys.executable, "-m", "bidir_core", "serve-model", "--model", model]
            line += ["--checkpoint", checkpoint] if checkpoint else []
            line += ["--idle-seconds", str(idle_seconds)]
            self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (as long as the process)
            try:
                self._process = subprocess.Popen(
                    line,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    text=True,
                    encoding="utf-8",
                    bufsize=1,
                    env=child_environment(),
                )
            except OSError as error:
                raise UserError(f"the model's process could not be started: {error}") from error
            self.model, self.checkpoint, self.error, self.facts = model, checkpoint, "", {}
            self._state, self.started = "loading", time.time()
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def stop(self) -> None:
        """Unload the model. Requests that are not answered yet are cancelled."""
        with self._lock:
            process, self._process = self._process, None
            self._state = "none"
            self._close_answers("cancelled", "")
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]  # it ends by itself at this
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(
        self,
        prompt: str,
        regimes: Sequence[str],
        sampling: dict[str, Any],
        *,
        bos: str = "auto",
        chat_template: bool = False,
    ) -> str:
        """Have a prompt continued; returns the request's name. UserError if no model is ready."""
        request: dict[str, Any] = {"prompt": prompt, "regimes": list(regimes), "sampling": sampling}
        request |= {"bos": bos, "chat_template": chat_template}
        return self._ask("generate", tuple(regimes), request)

    def rescore(
        self,
        contexts: Sequence[str],
        continuations: Sequence[str],
        regime: str,
        *,
        causal_layers: Sequence[int] = (),
        causal_tokens: Sequence[int] = (),
        bos: str = "auto",
    ) -> str:
        """Have an item scored, as :func:`bidir_core.explain.why_search.rescore` does; returns the
        request's name. UserError if no model is ready."""
        request: dict[str, Any] = {"regime": regime, "bos": bos}
        request |= {"contexts": list(contexts), "continuations": list(continuations)}
        request |= {"causal_layers": list(causal_layers), "causal_tokens": list(causal_tokens)}
        return self._ask("rescore", (regime,), request)

    def _ask(self, op: str, regimes: tuple[str, ...], request: dict[str, Any]) -> str:
        with self._lock:
            if self.state != "ready" or self._process is None:
                raise UserError("no model is loaded; load it first")
            name = uuid.uuid4().hex
            for old in list(self._answers)[: max(0, len(self._answers) - KEPT_ANSWERS + 1)]:
                del self._answers[old]
            sides: list[dict[str, Any]] = [
                {"probe": None, "steps": [], "text": "", "ended": None} for _ in regimes
            ]
            self._answers[name] = Answer(regimes, sides=sides)
            self._send(op=op, id=name, **request)
            return name

    def cancel(self, name: str) -> None:
        """Stop generating an answer behind its next token."""
        with self._lock:
            if name in self._answers and self._answers[name].is_open:
                self._send(op="cancel", id=name)

    def answer(self, name: str) -> Answer | None:
        """The answer so far; None if it is unknown or was forgotten."""
        with self._lock:
            return self._answers.get(name)

    def log_tail(self, n_bytes: int = 4000) -> str:
        try:
            size = os.fstat(self._log.fileno()).st_size
            data = os.pread(self._log.fileno(), n_bytes, max(0, size - n_bytes))
        except (OSError, AttributeError, ValueError):
            return ""
        return data.decode("utf-8", errors="replace").rpartition("\r")[2]

    def _send(self, **request: Any) -> None:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except (OSError, ValueError) as error:
            raise UserError("the model's process has ended; load it again") from error

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            with self._lock:
                if process is self._process:
                    self._take(event)
        code = process.wait()
        with self._lock:
            if process is self._process and self._state in ("loading", "ready"):
                self._ended(code)
            elif process is self._process:  # a request came just as it ended by itself
                self._close_answers("error", "the model had just been unloaded; load it again")

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event", "")
        if kind in ("ready", "idle", "failed"):
            self._state = kind
            self.error = str(event.get("message", ""))
            self.facts = event if kind == "ready" else {}
        answer = self._answers.get(str(event.get("id")))
        if answer is None:
            return
        if kind == "begin":
            answer.state, answer.prompt = "running", event["text"]
            answer.n_prompt = event["n_prompt"]
        elif kind == "probe":
            answer.sides[event["index"]]["probe"] = event
        elif kind == "step":
            answer.sides[event["index"]]["steps"].append(event)
        elif kind == "rescored":
            answer.result = event["result"]
        elif kind == "end":
            answer.sides[event["index"]].update(text=event["text"], ended=event["ended"])
        elif kind in ("done", "cancelled"):
            answer.state = kind  # type: ignore[assignment]
        elif kind == "error":
            answer.state, answer.error = "error", str(event["message"])

    def _ended(self, code: int) -> None:
        """The process ended unexpectedly: it was killed, or it crashed."""
        self._state = "died"
        self.error = f"it was killed (signal {-code})" if code < 0 else f"it ended with code {code}"
        self._close_answers("error", f"the model's process has ended: {self.error}")

    def _close_answers(self, state: Literal["cancelled", "error"], error: str) -> None:
        for answer in self._answers.values():
            if answer.is_open:
                answer.state, answer.error = state, error


_shared = ModelWorker()


def shared() -> ModelWorker:
    return _shared
