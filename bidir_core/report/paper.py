"""The material of a paper in one folder: tables, figures, number macros and claims.

The folder is built beside its place and moved there in one rename. Its tables are the report's.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bidir_core.analyse.contrasts import cell_title, level
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import Study, ordered_cells
from bidir_core.common import formatting
from bidir_core.common.errors import UserError
from bidir_core.common.files import remove_left_overs, sync_folder
from bidir_core.report import paper_latex
from bidir_core.report.markdown import Table
from bidir_core.report.paper_claims import claims_json, claims_table, make_claims
from bidir_core.report.paper_figures import FIGURES, save, style
from bidir_core.report.sections import Report, build_sections

MANIFEST = "manifest.json"

MADE_BY = "bidir_core report --paper"

Tell = Callable[[float, str], object]  # the share that is done, and what comes next


def write_paper(report: Report, folder: Path | str) -> Path:
    """Write the folder of a paper and return it.

    Raises UserError if the folder holds anything that this command did not write, or cannot be
    written.
    """
    target = Path(folder).expanduser().absolute()
    try:
        check_paper_folder(target)
        with _temporary_sibling(target) as temporary:
            write_files(report, temporary)
            _write_manifest(report, temporary)
            _replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"--paper {folder}: cannot be written ({error.strerror or error}); give another folder"
        ) from error
    return target


def zip_paper(report: Report, name: str, tell: Tell) -> bytes:
    """The same folder as one ZIP file, in which it is called ``name``; nothing stays on disk.

    The same runs give the same bytes. ``tell`` hears how far it is.
    """
    out = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="bidir-paper-") as temporary:
        folder = Path(temporary)
        write_files(report, folder, tell)
        _write_manifest(report, folder)
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    entry = zipfile.ZipInfo(f"{name}/{path.relative_to(folder).as_posix()}")
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


# --- the files -----------------------------------------------------------------------------------


def write_files(report: Report, folder: Path, tell: Tell = lambda share, next_step: None) -> None:
    """Write tables, figures, number macros and claims into an empty folder."""
    tell(0.0, "numbers and claims")
    numbers, tables = _without_leaky(report)
    claims = make_claims(numbers)
    (folder / "tables").mkdir()
    for table in (*tables.values(), claims_table(claims)):
        if table:
            _write(folder / "tables" / f"{table.key}.tex", paper_latex.tabular(table) + "\n")
            _write(folder / "tables" / f"{table.key}.csv", table.csv())
    _write(folder / "numbers.tex", number_macros(numbers))
    claims_text = json.dumps(claims_json(numbers, claims), indent=1, ensure_ascii=False)
    _write(folder / "claims.json", claims_text + "\n")
    (folder / "figures").mkdir()
    with style():
        for done, (name, draw) in enumerate(FIGURES.items(), 1):
            tell(0.9 * done / len(FIGURES), f"figure {name}")
            figure = draw(numbers)
            if figure is not None:
                save(figure, folder / "figures" / name)


def _without_leaky(report: Report) -> tuple[Findings, dict[str, Table]]:
    """The report's numbers and tables, without a leaky fine-tune: its numbers are no result."""
    study = report.study
    if not any(arm.leaky for arm in study.arms):
        return report.numbers, report.tables
    cells = {cell: runs for cell, runs in study.cells.items() if not cell[0].leaky}
    finetunes = {arm: runs for arm, runs in study.finetunes.items() if not arm.leaky}
    clean: Study = replace(study, cells=cells, finetunes=finetunes)
    numbers = Findings(clean, report.numbers.metric, report.numbers.margin)
    return numbers, replace(report, sections=tuple(build_sections(numbers))).tables


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


# --- number macros ---------------------------------------------------------------------------------

_MACROS = r"""% \runnumber{KEY} prints a number of the runs; an unknown key is an error.
% Differences, their ends and the margin are in points, what is kept is in per cent.
\makeatletter
\providecommand{\runnumber}[1]{\@ifundefined{run:#1}{\errmessage{no number '#1'}}{\@nameuse{run:#1}}}
"""


def number_macros(numbers: Findings) -> str:
    """A TeX file that defines every number of :func:`printed_numbers` under its key."""
    lines = [
        f"\\@namedef{{run:{key}}}{{{paper_latex.number(text)}}}"
        for key, text in printed_numbers(numbers).items()
    ]
    return _MACROS + "\n".join([*lines, r"\makeatother"]) + "\n"


def printed_numbers(numbers: Findings) -> dict[str, str]:
    """Key, such as ``stage-2-minus-stage-1/piqa/difference``, to the number as it is printed."""
    printed: dict[str, str] = {}

    def add(key: str, text: str) -> None:
        plain = re.sub(r"[^a-z0-9./+]+", "-", key.lower())
        key = base = re.sub(r"-*(/|$)-*", r"\1", plain)
        copy = 2
        while key in printed:  # two names that read alike keep apart
            key, copy = f"{base}-{copy}", copy + 1
        printed[key] = text

    def add_difference(key: str, value: float, low_high: object, n: int | None) -> None:
        add(f"{key}/difference", formatting.points(value, signed=True))
        for end in ("low", "high"):
            if low_high is not None:
                add(f"{key}/{end}", formatting.points(getattr(low_high, end), signed=True))
        if n is not None:
            add(f"{key}/n", formatting.count(n))

    study = numbers.study
    add("margin", f"{100 * numbers.margin:g}")
    for cell in ordered_cells(study):
        accuracy = level(study.runs(*cell), numbers.metric)
        if accuracy is not None:
            title = cell_title(study, cell)
            add(f"{title}/macro/{numbers.metric}", f"{accuracy.value:.4f}")
            if accuracy.interval is not None:
                add(f"{title}/macro/{numbers.metric}/low", f"{accuracy.interval.low:.4f}")
                add(f"{title}/macro/{numbers.metric}/high", f"{accuracy.interval.high:.4f}")
    for contrast in numbers.contrasts(leaky=False):
        title = f"{contrast.b} minus {contrast.a}"
        add_difference(f"{title}/macro", contrast.value, contrast.interval, contrast.n)
        for kept, floor in (
            (contrast.above_chance, "chance"),
            (contrast.above_floor, "no-context"),
        ):
            for part in ("value", "low", "high"):
                value = getattr(kept, part, None)
                if value is not None:
                    add(f"{title}/kept-above-{floor}/{part}", f"{100 * value:.1f}")
        for row in contrast.tasks:
            add_difference(f"{title}/{row.task}", row.delta, row.interval, row.n)
            if row.p_holm:
                add(f"{title}/{row.task}/p-holm", " / ".join(map(formatting.p_text, row.p_holm)))
    for arm in study.trained("3B", "distill"):
        found = numbers.interaction(arm)
        if not isinstance(found, str):
            by_task = {"macro": found.effect.estimate, **found.effect.per_task}
            for task, estimate in by_task.items():
                key = f"interaction {arm.title}/{task}"
                add_difference(key, estimate.value, estimate, estimate.n)
    return printed


# --- the folder ------------------------------------------------------------------------------------


def check_paper_folder(folder: Path | str) -> None:
    """UserError for a place that holds something else: what others wrote is never lost."""
    target = Path(folder).expanduser().absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"--paper {target}: this is not a folder; give a new or an empty one")
    if not target.exists() or not any(target.iterdir()):
        return
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        written = manifest["files"] if manifest["made_by"] == MADE_BY else None
    except (OSError, ValueError, KeyError, TypeError):
        written = None
    if not isinstance(written, dict):
        raise UserError(
            f"--paper {target}: the folder is not empty and was not made by this command; give a "
            "new or an empty one"
        )
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if not path.is_dir() and name != MANIFEST and written.get(name) != _sha256(path):
            raise UserError(
                f"--paper {target}: '{name}' was added or changed after this command made the "
                "folder, and would be lost; move it away, or give another folder"
            )


@contextmanager
def _temporary_sibling(target: Path) -> Iterator[Path]:
    """A temporary folder next to the target, so that a rename suffices; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.being-written-"  # nobody's own files are called that
    remove_left_overs(target.parent, f"{glob.escape(prefix)}*")
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    umask = os.umask(0)
    os.umask(umask)
    try:
        os.chmod(temporary, 0o777 & ~umask)  # mkdtemp lets nobody else read
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_manifest(report: Report, folder: Path) -> None:
    """What was written, by which the next run knows the folder as its own; flushed to disk."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {
        "made_by": MADE_BY,
        "command": report.command(out="DIR", flag="--paper"),
        "files": {name: _sha256(folder / name) for name in files},
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for name in (*files, MANIFEST):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())


def _replace(new: Path, target: Path) -> None:
    """Move ``new`` to ``target``; an older folder of ours goes only once the new one stands."""
    old = new.with_name(new.name + ".old")
    replaced = target.exists()
    if replaced:
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if replaced:
            os.rename(old, target)
        raise
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
