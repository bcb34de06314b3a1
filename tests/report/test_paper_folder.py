"""A paper's folder: the same bytes again, only its own is replaced, never half of one."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bidir_core.common.errors import UserError
from bidir_core.report import paper as write
from bidir_core.report.paper import write_paper, zip_paper


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def test_the_zip_holds_the_same_folder(repaired_report, paper):
    steps: list[tuple[float, str]] = []
    data = zip_paper(repaired_report, "paper", lambda *step: steps.append(step))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        zipped = {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
    assert zipped == {f"paper/{name}": data for name, data in files_of(paper).items()}
    shares = [share for share, _ in steps]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert "figure forest" in [next_step for _, next_step in steps]


def test_the_same_runs_give_the_same_bytes(repaired, paper, tmp_path):
    """In another process, with another order of sets, from the command line."""
    again = tmp_path / "again"
    line = ["-m", "bidir_core", "report", "--runs-dir", str(repaired), "--paper", str(again)]
    folder, env = Path(write.__file__).parents[2], os.environ | {"PYTHONHASHSEED": "7"}
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, *line], check=True, cwd=folder, env=env, stdout=quiet)
    ours, theirs = files_of(paper), files_of(again)
    assert set(ours) == set(theirs)
    for name, data in ours.items():
        assert data == theirs[name], name
        if name.endswith(".pdf"):
            assert b"/CreationDate" not in data
            assert b"/FontFile2" in data  # embedded
        if name.endswith(".svg"):
            assert b"<dc:date>" not in data
            assert b"<text" not in data  # outlines: no font is needed


def small(report, folder):
    """Stands for the whole paper where only the folder matters."""
    (folder / "figures").mkdir()
    (folder / "numbers.tex").write_text("x")
    (folder / "figures" / "a.svg").write_text("<svg/>")


def test_its_own_folder_is_replaced_and_nothing_else(repaired_report, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "write_files", small)
    target = tmp_path / "paper"
    target.mkdir()  # an empty folder will do
    write_paper(repaired_report, target)
    write_paper(repaired_report, target)
    (target / "numbers.tex").write_text("mine now")
    with pytest.raises(UserError, match=r"'numbers\.tex' was added or changed"):
        write_paper(repaired_report, target)
    assert (target / "numbers.tex").read_text() == "mine now"
    shutil.rmtree(target)
    target.mkdir()
    (target / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and was not made by this command"):
        write_paper(repaired_report, target)
    assert [p.name for p in tmp_path.iterdir()] == ["paper"]


def test_places_that_cannot_be_written_are_refused(repaired_report, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for place, why in ((file, "not a folder"), (link, "not a folder"), (file / "in", "--paper")):
        with pytest.raises(UserError, match=why):
            write_paper(repaired_report, place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_paper_that_fails_half_way_leaves_the_old_one(repaired_report, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "write_files", small)
    target = write_paper(repaired_report, tmp_path / "paper")
    before = files_of(target)

    def broken(report, folder):
        (folder / "numbers.tex").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_files", broken)
    with pytest.raises(UserError, match="No space left"):
        write_paper(repaired_report, target)
    assert files_of(target) == before
    assert [p.name for p in tmp_path.iterdir()] == ["paper"]
