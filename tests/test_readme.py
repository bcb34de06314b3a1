"""What the README tells a newcomer to type is what the program takes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from bidir_core.cli import build_parser
from bidir_core.data.tasks import load_items

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "runs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def command_lines() -> list[str]:
    """Every ``python -m bidir_core ...`` in code, inline or in blocks."""
    found = []
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        code = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
        for line in "\n".join(code).splitlines():
            start = line.find("python -m bidir_core ")
            if start >= 0:
                found.append(line[start:].split("#")[0].strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line):
    words = shlex.split(line)[3:]
    if "--help" in words:
        words = [*words[: words.index("--help")], "--help"]
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args(words)
        assert stop.value.code == 0
        return
    parser = build_parser()
    (commands,) = [action for action in parser._actions if action.choices]
    assert words[0] in commands.choices
    if len(words) > 1:  # a bare command name is prose
        parser.parse_args(words)


def test_the_two_commands_need_nothing_else():
    """Set-up is one line each, and installs what the repository pins."""
    blocks = re.findall(r"```sh\n(python3 -m venv [^\n]*)\n```", README)
    assert len(blocks) == 2
    start, tests = blocks
    assert start.endswith("streamlit run app.py")
    assert "-m pytest" in tests
    for block in blocks:
        (name,) = re.findall(r"-r (\S+)", block)
        assert (ROOT / name).is_file()
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text()
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def test_the_example_task_is_a_task(tmp_path):
    (example,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    json.loads(example)
    path = tmp_path / "mine.jsonl"
    path.write_text(example)
    (item,) = load_items([str(path)])
    assert item.n_choices == 2


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_and_pictures_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_map_names_every_room():
    """Rooms are folders; a file at a package's root is named too, but for its entry points."""
    tables = README.split("## The map")[1]
    for package in ("bidir_core", "bidir_ui"):
        rooms = [
            path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()
        ]
        assert rooms
        assert not [room for room in rooms if f"`{room}/`" not in tables]


def test_scripts_named_in_the_docs_exist():
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`(scripts/[\w./]+)`", text):
            assert (ROOT / name).is_file(), name
        for module in re.findall(r"python -m ((?:scripts|benchmarks)\.\w+)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
