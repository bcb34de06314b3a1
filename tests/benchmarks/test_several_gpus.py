"""The benchmark of several GPUs: its rows, what fails in it, and the commands that it starts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from benchmarks import several_gpus
from benchmarks.several_gpus import Ended
from bidir_core.cli import main
from tests.bench_line import benchmark_line


@pytest.fixture
def line(tmp_path, own_items):
    return benchmark_line(tmp_path, own_items, "--limit 4 --steps 3")


def read(out: Path) -> dict[tuple[str, str], dict]:
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    return {(row["part"], row["what"]): row for row in rows}


def test_rows_come_from_the_runs_and_a_failure_is_one_of_them(line, monkeypatch, tmp_path) -> None:
    words, out = line
    started = []

    def here(words, *, processes, fsdp, on_gpu) -> Ended:
        """In this process, whatever was asked for."""
        started.append((words[0], processes, fsdp, on_gpu))
        if fsdp and processes == 2:
            return Ended(1, 0.5, "NCCL error: no such thing\nE1 failed (exitcode: 1) local_rank")
        return Ended(main(words), 2.0, "")

    monkeypatch.setattr(several_gpus, "run_command", here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    several_gpus.main(words)
    parts = (("eval", False), ("finetune", False), ("finetune", True))
    assert started == [(name, n, fsdp, False) for name, fsdp in parts for n in (1, 2)]
    rows = read(out)
    single = rows["eval", "1 process"]
    assert (single["items"], single["wall_seconds"]) == (4, 2.0)
    assert single["after_load_seconds"] >= single["scoring_seconds"] > 0
    assert rows["eval", "predictions"]["predictions_differ"] == 0
    tuned = rows["finetune", "2 processes"]
    assert tuned["timed_steps"] == 2
    assert tuned["tokens_per_second"] > 0
    times = rows["finetune", "2 processes against one"]
    assert times["times_wall"] == 1.0
    assert rows["fsdp", "1 process"]["tokens_per_second"] > 0
    assert rows["fsdp", "2 processes"]["failed"] == "exit code 1: NCCL error: no such thing / E1"
    assert ("fsdp", "2 processes against one") not in rows
    assert not list(tmp_path.glob("**/several-gpus-*"))  # neither the model nor its runs stay


def test_a_command_that_fails_says_so() -> None:
    refused = several_gpus.run_command(["eval"], on_gpu=False)
    assert "exit code 2: error: --model is missing" in (refused.trouble or "")


def test_one_process_gets_one_of_the_gpus_that_there_are(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (several_gpus.gpus(1), several_gpus.gpus(2)) == ("0", "0,1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert (several_gpus.gpus(1), several_gpus.gpus(2)) == ("4", "4,6")


def test_what_cannot_be_is_refused(capsys) -> None:
    for words in (["--parts", "tea"], ["--steps", "3", "--warm-up", "3"], ["--processes", "1"]):
        with pytest.raises(SystemExit) as refused:
            several_gpus.parse(words)
        assert refused.value.code == 2
