"""The benchmark of how ``eval`` grows: its rows, and what fails in it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from benchmarks import growth
from benchmarks.several_gpus import Ended


def test_what_fails_or_does_not_fit_is_a_row_and_the_others_go_on(tmp_path, monkeypatch) -> None:
    seconds = {10: 1.0, 100: 10.0}
    points = lambda part, _: [("m", x, [{}] * x) for x in (10, 50, 100, 101)]  # noqa: E731
    monkeypatch.setattr(growth, "points", points)
    monkeypatch.setattr(growth, "window_of", lambda model: 100)

    def run(words: list[str]) -> Ended:
        n = len(Path(words[words.index("--tasks") + 1]).read_text().splitlines())
        return Ended(0, seconds[n], "") if n in seconds else Ended(2, 0.1, "loading\nno room")

    monkeypatch.setattr(growth, "run_command", run)
    cost = {"prefix_tokens": 9, "seconds": 1.0, "peak_memory_bytes": {"host": 2e9}, "device": "x"}
    finished = SimpleNamespace(metrics={"cost": cost})
    monkeypatch.setattr(growth, "list_runs", lambda _: [finished])
    growth.main(["--parts", "tokens", "--out", str(tmp_path / "growth")])
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert [row["x"] for row in rows[:-1]] == [10, 50, 100, 101]
    assert rows[1]["failed"] == "exit code 2: loading / no room"
    assert rows[3]["skipped"] == "beyond the model's window of 100 tokens"
    assert rows[-1]["seconds_exponent"] == 1.0
