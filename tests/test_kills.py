"""Every command killed at random moments and gone on with: nothing is lost and nothing left over,
and the results are those of a run that nobody killed.

A kill is SIGKILL. What goes on is killed too, now and then. More of them, and how many there were:

    BIDIR_KILLS=200 python -m pytest -p no:xdist -s tests/test_kills.py
"""

import json
import os
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bidir_core.cli import main
from bidir_core.runs.find import delete_run, list_runs
from tests import launching
from tests.factory import training_file

RESUMED = ("eval", "lab", "attend", "finetune")  # the others go on with the same line
COMMANDS = (*RESUMED, "pipeline", "recommend", "why", "generate", "report", "export", "import")
KILLS = int(os.environ.get("BIDIR_KILLS", len(COMMANDS)))  # over all commands
# What a run was told, spent or was made by: it may differ where the results do not.
APART = ("cost", "checksums", "seconds", "seconds_per_item", "tokens_per_second")


def start(words: list[str], folder: Path) -> Any:
    runs = str(folder / "runs")
    return launching.start(partial(main, words), folder / "said.txt", BIDIR_RUNS_DIR=runs)


def to_the_end(words: list[str], folder: Path) -> float:
    """Its seconds."""
    started = time.monotonic()
    process = start(words, folder)
    process.join(300)
    assert process.exitcode == 0, (words, (folder / "said.txt").read_text()[-2000:])
    return time.monotonic() - started


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in APART:
                yield from numbers(inner, f"{place}/{key}")
    elif isinstance(value, int | float):
        yield place, float(value)


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """What must be equal, such as answers, weights and reports, and what may differ by rounding."""
    exact: dict[str, Any] = {}
    rounded: dict[str, float] = {}
    runs = [run for run in list_runs([folder / "runs"], points=True) if run.state == "done"]
    for run in sorted(runs, key=lambda run: (run.stage, run.regime or "", run.path.name)):
        name = f"{run.stage} {run.regime} {sum(key.startswith(run.stage) for key in exact)}"
        exact[name] = run.items(["task", "doc_id", "pred"]).values.tolist() if run.has_items else []
        exact[name] += [p.read_bytes() for p in sorted(run.path.glob("final/*.safetensors"))]
        rounded |= {name + place: n for place, n in numbers(run.metrics)}
    for path in sorted((folder / "out").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            exact[path.name] = path.read_bytes()
    return exact, rounded


def left_over(folder: Path) -> list[str]:
    """Hidden files, and runs that are not done."""
    names = [str(path) for path in folder.rglob(".*")]
    return names + [
        f"{run.id} {run.state}"
        for run in list_runs([folder / "runs"], points=True)
        if run.state != "done"
    ]


def an_hour_later(folder: Path) -> None:
    """Make left-overs old: young ones stay, since a live process may still work on them."""
    for path in folder.rglob(".*"):
        os.utime(path, (time.time() - 7200,) * 2, follow_symlinks=False)


@pytest.fixture(scope="module")
def lines(tiny_folder, own_items, tmp_path_factory) -> dict[str, list[str]]:
    """Each command's line; ``OUT`` stands for a folder to write to."""
    given = tmp_path_factory.mktemp("given")
    data = training_file(given / "samples.jsonl", 30)
    prompts = given / "prompts.txt"
    prompts.write_text("The city of light\nOnce upon a time there was\nAnd then\n")
    model = ["--model", str(tiny_folder), "--device", "cpu"]
    items = ["--tasks", str(own_items)]
    train = f"--data {data} --steps 12 --batch-samples 4 --max-tokens 64 --warmup-steps 2 --lr 1e-3"
    train += " --eval-every 0 --no-decontaminate --checkpoint-every 3"
    shorter = train.replace("--steps 12", "")
    regimes = "--regime causal --regime bidirectional"
    to_the_end(["eval", *model, *items, "--regime", "causal,bidirectional"], given / "both")
    both = [str(run.path) for run in list_runs([given / "both" / "runs"])]
    to_the_end(["export", both[0], "--out", str(given / "log")], given)
    arguments = {
        "eval": [*model, *items, "--batch-tokens", "1"],
        "lab": [*model, *items, "--limit", "9", "--sweep", "sink=0,1", "--batch-tokens", "1"],
        "attend": [*model, "--task", str(own_items), "--limit", "9", *regimes.split()],
        "finetune": ["--prompt-bidir-response-causal-train", *model, *train.split()],
        "pipeline": [
            *model,
            *items,
            *["--limit", "4", "--no-floor", "--steps", "4"],
            *shorter.split(),
        ],
        "recommend": [*model, "--prompts", str(prompts)],
        "why": [*model, "--task", str(own_items), "--doc-id", "1"],
        "generate": [*model, "--prompt", "One two three"],
        "report": [*both, "--out", "OUT/report.md", "--csv", "--html", "OUT/report.html"],
        "export": [both[0], "--out", "OUT"],
        "import": [str(given / "log")],
    }
    return {command: [command, *words] for command, words in arguments.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments_and_gone_on_with(command, lines, tmp_path):
    kills = KILLS // len(COMMANDS) + (COMMANDS.index(command) < KILLS % len(COMMANDS))

    def line(folder: Path) -> list[str]:
        runs = list_runs([folder / "runs"]) if command in RESUMED else []
        if runs:
            return [command, "--resume", runs[0].id]
        return [word.replace("OUT", str(folder / "out")) for word in lines[command]]

    uninterrupted = tmp_path / "whole"
    uninterrupted.mkdir()
    seconds = to_the_end(line(uninterrupted), uninterrupted)
    exact, rounded = outcome(uninterrupted)
    rng, hits, missed = Random(zlib.crc32(command.encode())), 0, 0
    while hits < kills and missed < 10 * kills:
        folder = tmp_path / f"{hits}-{missed}"
        folder.mkdir()
        for _ in range(rng.choice((1, 1, 2, 3))):
            process = start(line(folder), folder)
            process.join(rng.random() * seconds)
            hit = process.exitcode is None
            process.kill()
            process.join()
            hits, missed = hits + hit, missed + (not hit)
            an_hour_later(folder)
            if not hit:
                break
        if command in ("recommend", "why"):  # nothing goes on with a run, so what is left of one
            for run in list_runs([folder / "runs"]):  # stays until somebody deletes it
                if run.state == "lost" or any(run.path.glob(".*")):
                    delete_run(run)
        if command in RESUMED or outcome(folder)[0] != exact:  # killed at its very end
            to_the_end(line(folder), folder)
        message = json.dumps([command, hits, missed, (folder / "said.txt").read_text()[-3000:]])
        again, numbers_again = outcome(folder)
        assert again == exact, message
        assert numbers_again == pytest.approx(rounded, abs=1e-3), message
        assert left_over(folder) == [], message
    print(f"{command}: {hits} kills")
    assert hits >= kills
