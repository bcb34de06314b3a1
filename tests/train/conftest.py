"""Tiny models and samples for the training tests: everything runs in milliseconds on one thread."""

from pathlib import Path

import numpy as np
import pytest

from bidir_core.models.families import tiny_tokenizer
from bidir_core.train.finetune import run_finetune
from bidir_core.train.mixtures import Sample
from bidir_core.train.packing import EncodedSamples, encode_samples
from tests.factory import write_lines


def make_samples(n: int, seed: int = 0) -> list[Sample]:
    """Random words, prompts of 3-40 characters and responses of 2-20."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return "".join(rng.choice(list("abcdefghij "), int(rng.integers(low, high)))).strip() or "a"

    return [Sample(f"q{text(3, 40)}", f" {text(2, 20)}", "random", i) for i in range(n)]


def encoded_samples(n: int = 24, seed: int = 0) -> EncodedSamples:
    return encode_samples(make_samples(n, seed), tiny_tokenizer(), max_tokens=64)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples.jsonl")


@pytest.fixture(scope="session")
def whole(tiny_folder, tmp_path_factory) -> Path:
    """The run of the tests' usual settings, which nothing stopped."""
    from tests.train.test_resume import config

    root = tmp_path_factory.mktemp("whole")
    return run_finetune(config(tiny_folder, write_samples(root / "samples.jsonl"), root))


def write_samples(path: Path) -> Path:
    """A file of 40 samples to train on."""
    samples = make_samples(40)
    write_lines(path, ({"prompt": s.prompt, "response": s.response} for s in samples))
    return path
