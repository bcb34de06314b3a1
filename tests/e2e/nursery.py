"""Fresh servers without the seconds of importing Streamlit, pandas and Plotly again.

A process that has imported other people's packages, and nothing of the app, forks once for every
server: what is born is ``streamlit run app.py`` in a process of its own that nobody has asked
anything yet. ``python -m tests.e2e.nursery`` reads a line of JSON for each and answers with its
process id; when its input ends, so does it.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = """
    streamlit.web.cli streamlit.web.server.starlette uvicorn pandas pyarrow.parquet
    plotly.graph_objects scipy.optimize scipy.special psutil filelock yaml huggingface_hub markdown_it jinja2 httpx PIL.Image
    PIL.PngImagePlugin plotly.subplots plotly.tools plotly.offline
"""


ALONE = "BIDIR_TESTS_ALONE"  # in a server's environment: the committed runs are not there


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Nursery:
    """The process that forks servers, from outside.

    ``port``: for servers that come one after the other, so that the browser knows the scripts.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, words: list[str], environment: Mapping[str, str], log: Path) -> int:
        """Run ``python -m WORDS`` in a fork; its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wish = {"words": words, "environment": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    for name in PACKAGES.split():
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith(("bidir_", "torch"))]
    assert threading.active_count() == 1, "a fork has no other threads"
    gc.freeze()
    signal.signal(signal.SIGCHLD, _bury)
    for line in sys.stdin:
        wish = json.loads(line)
        if (pid := os.fork()) == 0:
            _become(wish)
        print(pid, flush=True)


def _bury(*_: object) -> None:
    """A dead server must not stay as a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(wish: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(wish["environment"])
    for number, path, how in ((0, os.devnull, os.O_RDONLY), (1, wish["log"], os.O_WRONLY)):
        file = os.open(path, how)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    if ALONE in os.environ:
        layout = importlib.import_module("bidir_core.runs.layout")
        layout.COMMITTED_RUNS = Path(os.devnull)  # type: ignore[attr-defined]
    scorecards = importlib.import_module("bidir_ui.reading.scorecards")
    scorecards.look_ahead = lambda: None  # type: ignore[attr-defined]  # seconds, for tests that need none
    sys.argv = list(wish["words"])
    runpy.run_module(wish["words"][0], run_name="__main__", alter_sys=True)
    os._exit(0)


if __name__ == "__main__":
    main()
