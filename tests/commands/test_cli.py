"""Bad input: exit 2, one line that names the value and the remedy, nothing half-written."""

import errno
import io
import sys

import pytest

from bidir_core.cli import main
from tests.factory import write_lines
from tests.tiny_models import save_tiny_model

BAD = {
    "regime with a bad dial": (["--regime", "bidirectional:sink=x"], "sink"),
    "layer that is not there": (["--regime", "bidirectional:layers=0-99"], "99"),
    "regime said twice": (["--regime", "causal", "--prefill-bidirectional"], "--prefill-bidirec"),
    "limit 0": (["--limit", "0"], "--limit 0"),
    "limit that is no number": (["--limit", "many"], "--limit: many: give a whole number"),
    "device that is not there": (["--device", "cuda:7"], "cuda:7"),
    "one regime twice": (["--regime", "causal,bidirectional:lambda=0"], "given twice"),
    "a second regime's layers": (["--regime", "causal,bidirectional:layers=9-9"], "layer 9 does"),
    "bad run name": (["--name", "a/b"], "a/b"),
    "unknown flag": (["--colour", "red"], "--colour"),
    "unknown choice": (["--sample", "best"], "best"),
    "no prompt at all": (["--repeat-prompt", "0"], "--repeat-prompt 0: give a number from 1 up"),
    "runs folder that is a file": (["--runs-dir", __file__], "test_cli.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tiny_folder, own_items, runs_dir, refused):
    more, expected = BAD[case]
    words = ["eval", "--model", str(tiny_folder)]
    if "--tasks" not in more:
        words += ["--tasks", str(own_items)]
    if "--device" not in more:
        words += ["--device", "cpu"]
    assert expected in refused([*words, *more], beside=True)
    assert not list(runs_dir.glob("*/*")), "something was half-written"


def test_cheap_mistakes_are_told_before_anything_is_fetched(runs_dir, monkeypatch, refused):
    from bidir_core.data import fetch

    def ensure(*_, **__):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(fetch, "ensure", ensure)
    words = ["eval", "--model", "smollm2-135m-instruct", "--device", "cpu"]
    assert "hellaswag" in refused([*words, "--tasks", "helaswag"], beside=True)
    assert "a/b" in refused([*words, "--name", "a/b"], beside=True)
    assert "test_cli.py" in refused([*words, "--runs-dir", __file__], beside=True)


def test_a_run_that_cannot_be_read_is_not_resumed(runs_dir, refused):
    folder = runs_dir / "stage1_vanilla_eval" / "20260101-000000"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    assert "config.json" in refused(["eval", "--resume", folder.name], beside=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eval", "--model"),
        ("eval --resume stage1_vanilla_eval/19990101-000000", "1999"),
        ("compare a b --margin 0", "--margin: 0: give a number of points above 0"),
        ("compare nonsense nonsense", "nonsense"),
        ("generate --model nobody --prompt a\udcff", "--prompt is not UTF-8 text"),
    ],
)
def test_a_bad_line_of_any_command(words, expected, runs_dir, refused):
    assert expected in refused(words.split(), beside=True)


def test_item_longer_than_the_window(tiny_folder, runs_dir, tmp_path, refused):
    item = {"contexts": ["word " * 3000], "continuations": [" a", " b"], "gold": 0}
    path = write_lines(tmp_path / "long.jsonl", [item])
    words = ["eval", "--model", str(tiny_folder), "--tasks", path, "--device", "cpu"]
    line = refused(words, beside=True)
    assert "long/0" in line
    assert "window" in line
    assert not list(runs_dir.glob("*/*"))


def test_help_on_each_command(capsys):
    commands = ("eval", "finetune", "pipeline", "probe", "compare", "report", "assets")
    for words in (["--help"], *([command, "--help"] for command in commands)):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_a_token_beyond_the_embedding_is_named(command, own_items, tmp_path, capsys):
    folder = save_tiny_model(tmp_path / "small", vocab_size=100, pad_token_id=None)
    words = (
        ["--prompt", "na\u00efve \u2014"] if command == "generate" else ["--tasks", str(own_items)]
    )
    runs = tmp_path / "runs"
    more = [] if command == "generate" else ["--runs-dir", str(runs)]
    assert main([command, "--model", str(folder), "--device", "cpu", *words, *more]) == 2
    assert "and the model has embeddings for 100 tokens" in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.parametrize("filename", [None, "/there/items.jsonl"])
def test_a_full_disk_names_what_is_known_and_what_to_do(filename, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", filename)

    monkeypatch.setattr("bidir_core.commands.assets.run", full)
    assert main(["assets", "list"]) == 1
    error = capsys.readouterr().err
    assert "None" not in error
    assert "No space left on device" in error
    assert "free some room" in error


def test_a_terminal_that_lacks_the_characters(tiny_folder, monkeypatch):
    """A model's text, and the prompt, on a terminal of ASCII."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    words = ["generate", "--model", str(tiny_folder), "--device", "cpu", "--json"]
    assert main([*words, "--prompt", "na\u00efve \u2014 \U0001f600?"]) == 0
    terminal.seek(0)
    assert "\\u2014" in terminal.read()
