"""A user's own files, harmed at random: read, or refused in one sentence, and never anything else.

More of them, and what became of them:

    BIDIR_MUTATIONS=2000 python -m pytest -p no:xdist -s tests/runs/test_mutated_input.py
"""

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from bidir_core.common.errors import UserError
from bidir_core.data.encoding import Encoder
from bidir_core.data.tasks import load_items
from bidir_core.models.families import tiny_tokenizer
from bidir_core.runs.lm_eval_import import import_results
from bidir_core.runs.run import Run
from bidir_core.train.data import read_samples
from bidir_core.train.mixtures import without_duplicates
from bidir_core.train.packing import encode_samples
from bidir_core.train.rows import Columns
from tests.factory import write_lines
from tests.interop_files import LIMIT, TASKS
from tests.runs.test_damage import mutated

MUTATIONS = int(os.environ.get("BIDIR_MUTATIONS", "300"))  # a third of each kind of file

TASK = [
    {"contexts": [f"Question {i}? Answer:"], "continuations": [" one", " two"], "gold": i % 2}
    for i in range(4)
] + [
    {"contexts": ["so Ann", "so B\u00e9a"], "continuations": [" won."], "gold": 1, "pair_id": "x"},
]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "h\u00f6"}]
TRAINING = [
    {"prompt": "a b", "response": "c"},
    {"prompt": "d", "completion": "e"},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"


def harmed(data: bytes, rng: Random) -> bytes:
    """A value replaced, removed or renamed, a piece cut off, or a few bytes that are others."""
    if rng.random() < 0.7:
        return mutated(data, rng)
    there = bytearray(data)
    for _ in range(rng.choice((1, 1, 4))):
        there[rng.randrange(len(there))] = rng.randrange(256)
    return bytes(there)


def outcomes(rng: Random, path: Path, read: Callable[[], None]) -> Counter[str]:
    original, counts = path.read_bytes(), Counter()
    read()
    for _ in range(MUTATIONS // 3):
        path.write_bytes(harmed(original, rng))
        refused = ""
        try:
            read()
        except UserError as error:
            refused = str(error)
        assert "\n" not in refused
        counts["refused" if refused else "read"] += 1
    return counts


def test_tasks(tmp_path):
    path = Path(write_lines(tmp_path / "mine.jsonl", TASK))
    encoder = Encoder(tiny_tokenizer(), bos="auto", chat_template=False)

    def read() -> None:
        for fewshot in (0, 1):
            encoder.encode(load_items([str(path)], num_fewshot=fewshot))

    counts = outcomes(Random(1), path, read)
    print(f"{counts.total()} mutations of a task: {dict(counts)}")
    assert min(counts["read"], counts["refused"]) > counts.total() // 20


def test_training_data(tmp_path):
    path = Path(write_lines(tmp_path / "train.jsonl", TRAINING))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE

    def read() -> None:
        samples = read_samples(str(path), Columns(), tokenizer, True, "all")
        encode_samples(without_duplicates(samples), tokenizer, max_tokens=64)

    counts = outcomes(Random(2), path, read)
    print(f"{counts.total()} mutations of training data: {dict(counts)}")
    assert min(counts["read"], counts["refused"]) > counts.total() // 20


def test_logs_of_lm_eval(copy, tmp_path):
    """Some compressed, harmed before or after; an import is whole, or it leaves nothing."""
    rng, counts, runs = Random(3), Counter(), tmp_path / "runs"
    originals = {path: path.read_bytes() for path in copy.iterdir()}
    for _ in range(MUTATIONS // 3):
        path = rng.choice([*originals])
        packed = path.with_name(path.name + ".gz")
        kind = rng.random()
        if kind < 0.8:
            path.write_bytes(harmed(originals[path], rng))
        else:
            inner = harmed(originals[path], rng) if kind < 0.9 else originals[path]
            data = bytearray(gzip.compress(inner))
            if kind >= 0.9:
                data[rng.randrange(len(data))] = rng.randrange(256)
            packed.write_bytes(data)
            path.unlink()
        refused = ""
        try:
            run = Run(import_results(copy, runs_dir=runs).path)
        except UserError as error:
            refused = str(error)
        assert "\n" not in refused
        if refused:
            assert not [path for path in runs.rglob("*") if path.is_file()]
        else:
            assert run.state == "done"
            assert len(run.items()) == LIMIT * len(TASKS)
            json.dumps(run.metrics, allow_nan=False).encode()
        counts["refused" if refused else "read"] += 1
        shutil.rmtree(runs, ignore_errors=True)
        packed.unlink(missing_ok=True)
        path.write_bytes(originals[path])
    print(f"{counts.total()} mutations of a log: {dict(counts)}")
    assert min(counts["read"], counts["refused"]) > counts.total() // 20
