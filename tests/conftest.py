"""Shared fixtures: a tiny model folder, a folder of runs, and a file of one's own items."""

import functools
import gc
import os
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import settings

from bidir_core.common.process import git_commit

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Thousands of runs are written here and read once: neither the disk, nor git, nor the list of what
# is installed is waited for at each.
os.fsync = lambda file: None
metadata.version = functools.cache(metadata.version)
if commit := git_commit():
    os.environ["BIDIR_COMMIT"] = commit
# Nor is all that is imported here looked through for garbage, at each of a thousand tiny models.
_collect, _freeze = gc.collect, gc.freeze
gc.collect, gc.freeze = lambda generation=1: _collect(generation), lambda: None
# Workers share the cores, and bits are the same for one number of threads; processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# Half of the usual examples, and no limit of time on a machine that others use.
settings.register_profile("tests", max_examples=50, deadline=None)
settings.load_profile("tests")

# What takes long: of two workers each begins with one half of it, and short tests come last.
FIRST_HALF = {"e2e", "ui", "runs", "data"}
SECOND_HALF = {"jobs", "train", "scripts", "evaluate", "explain", "test_kills.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def of(half: set[str]) -> list[pytest.Item]:
        return [i for i in items if i.path.relative_to(Path(__file__).parent).parts[0] in half]

    first, second = of(FIRST_HALF), of(SECOND_HALF)
    long = {*first, *second}
    short = [item for item in items if item not in long]
    n = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *short[:n], *second, *short[n:]]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if item.get_closest_marker("assets"):  # its model was a large one
        _collect()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m alone`` imports no file without such a test."""
    if config.option.markexpr != "alone" or collection_path.suffix != ".py":
        return None
    return "mark.alone" not in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Neighbours share fixtures, so each worker takes half of all, and then what is left of others'."""
    from xdist.scheduler.worksteal import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture
def real_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", _collect)
    monkeypatch.setattr(gc, "freeze", _freeze)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder like a hub snapshot, with a tiny random Llama and a byte tokenizer."""
    from tests.tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that ends with exit code 2 and one line, which it returns; ``beside``: other
    lines may stand beside it."""
    from bidir_core.cli import main

    def run(words: Iterable[object], *, beside: bool = False) -> str:
        try:
            code = main([*map(str, words)])
        except SystemExit as stop:
            code = stop.code  # type: ignore[assignment]
        said = capsys.readouterr().err
        lines = [x for x in said.splitlines() if x.startswith("error: ") or not beside]
        assert (code, len(lines)) == (2, 1), said
        assert lines[0].startswith("error: ")
        assert "Traceback" not in said
        return lines[0]

    return run


@pytest.fixture(scope="session")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a study in which 3B repairs what the mask broke and its control does not."""
    from tests.report_runs import REPAIRED, two_by_two

    root = tmp_path_factory.mktemp("repaired")
    two_by_two(root, REPAIRED)
    return root


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that new runs go to, without the committed runs, which take long to list."""
    from bidir_core.runs import layout

    monkeypatch.setattr(layout, "COMMITTED_RUNS", tmp_path / "none")
    folder = tmp_path / "runs"
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(folder))
    monkeypatch.delenv("BIDIR_READ_ONLY", raising=False)
    return folder


@pytest.fixture(scope="session")
def own_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's task: 60 items of three choices, contexts of different length."""
    from tests.factory import write_lines

    def item(i: int) -> dict:
        context = f"Question {i}: " + "what comes next? " * (i % 5 + 1) + "Answer:"
        choices = [f" the {i}th thing", f" the {i}", " nothing" + "!" * (i % 3)]
        return {"contexts": [context], "continuations": choices, "gold": i % 3}

    return Path(write_lines(tmp_path_factory.mktemp("tasks") / "mine.jsonl", map(item, range(60))))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder for the app, and nothing else: no committed runs, an empty cache."""
    from bidir_core.runs import layout

    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("BIDIR_READ_ONLY", raising=False)
    monkeypatch.setattr(layout, "COMMITTED_RUNS", tmp_path / "none")
    return tmp_path / "runs"


@pytest.fixture
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own folder is where runs are, and they may be written."""
    monkeypatch.setenv("BIDIR_RUNS_DIR", str(tmp_path))
    monkeypatch.delenv("BIDIR_READ_ONLY", raising=False)
