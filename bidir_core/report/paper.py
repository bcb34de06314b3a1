"""Putting the folder in its place: built beside it, then moved there in one rename."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.common.files import sync_folder
from bidir_core.common.provenance import git_commit
from bidir_core.common.version import __version__
from bidir_core.report import paper_latex
from bidir_core.report.markdown import code, escape
from bidir_core.report.paper_claims import Claim, make_claims
from bidir_core.report.paper_figures import Drawn, all_figures, save, style
from bidir_core.report.paper_methods import methods_text
from bidir_core.report.paper_numbers import MACRO_NAME, STATISTICS, Ledger, Quantities
from bidir_core.report.paper_tables import all_tables
from bidir_core.report.sections import Report

MANIFEST = "manifest.json"

MADE_BY = "bidir_core report --paper"

# What LaTeX leaves behind when a reader compiles main.tex: made again by compiling again.
_LATEX_LEFTOVERS = {
    f"main.{end}"
    for end in ("aux", "bbl", "blg", "fdb_latexmk", "fls", "log", "out", "pdf", "synctex.gz", "toc")
}


def write_paper(report: Report, folder: Path | str, *, command: str = "") -> Path:
    """Write the folder of a paper and return it.

    ``command`` is the line that asked for it, for the README. Raises UserError if the folder
    holds anything that this command did not write, or cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    try:
        check_paper_folder(target)
        with _beside(target) as temporary:
            fill(report, temporary, command)
            _sign(temporary)
            _replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"--paper {folder}: cannot be written ({error.strerror or error}); give another folder"
        ) from error
    return target


def zip_paper(report: Report, name: str, tell: Tell, *, command: str = "") -> bytes:
    """The same folder as one ZIP file, in which it is called ``name``; the same runs give the same
    bytes. ``tell`` hears how far it is. Nothing stays on disk.
    """
    out = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="bidir-paper-") as temporary:
        folder = Path(temporary)
        fill(report, folder, command, tell)
        _sign(folder)
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    entry = zipfile.ZipInfo(f"{name}/{path.relative_to(folder).as_posix()}")
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def check_paper_folder(folder: Path | str) -> None:
    """UserError for a place that holds something else: what others wrote is never lost."""
    target = Path(folder).expanduser().absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"--paper {target}: this is not a folder; give a new or an empty one")
    if not target.exists() or not any(target.iterdir()):
        return
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        ours = manifest["files"] if manifest["made_by"] == MADE_BY else None
    except (OSError, ValueError, KeyError, TypeError):
        ours = None
    if not isinstance(ours, dict):
        raise UserError(
            f"--paper {target}: the folder is not empty and was not made by this command; give a "
            "new or an empty one"
        )
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_dir() or name == MANIFEST or name in _LATEX_LEFTOVERS:
            continue
        if ours.get(name) != _sha256(path):
            raise UserError(
                f"--paper {target}: '{name}' was added or changed after this command made the "
                "folder, and would be lost; move it away, or give another folder"
            )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder next to the target, so that a rename suffices; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp's own are for one's eyes only
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sign(folder: Path) -> None:
    """The list of what was written, by which the next run knows the folder as its own."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest = {"made_by": MADE_BY, "files": {name: _sha256(folder / name) for name in files}}
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What stands in the folder: figures, tables, main.tex, the ledgers and a README.

PACKAGES = ("array", "booktabs", "graphicx", "longtable")

_VERSIONS = ("matplotlib", "numpy", "scipy", "statsmodels", "pandas", "pyarrow")

Tell = Callable[[float, str], object]  # the share that is done, and what comes next


def fill(report: Report, folder: Path, command: str, tell: Tell = lambda share, what: None) -> None:
    """Write every file into an empty folder."""
    tell(0.0, "numbers and claims")
    quantities = Quantities(report.numbers)
    claims = make_claims(quantities)
    (folder / "figures").mkdir()
    (folder / "tables").mkdir()
    tell(0.1, "figures")
    with style():
        drawn = all_figures(quantities)
        for number, one in enumerate(drawn):
            tell(0.3 + 0.5 * number / len(drawn), f"figure {one.key}")
            save(one.figure, folder / "figures" / one.key, one.title)
    tell(0.8, "tables and texts")
    tables = all_tables(quantities, claims)
    texts = {f"tables/{table.key}.tex": f"{MACRO_NAME}\n{table.tex()}\n" for table in tables}
    texts["methods.tex"] = f"{MACRO_NAME}\n{methods_text(quantities)}\n"
    texts["figures.tex"] = "\n".join([MACRO_NAME, *map(_figure_tex, drawn)]) + "\n"
    texts["main.tex"] = _main_tex(quantities, [table.key for table in tables])
    texts["references.bib"] = paper_latex.bibtex(paper_latex.cited(texts.values()))
    fold, items = _fold(quantities)
    texts["claims.json"] = _json(
        {
            "metric": quantities.metric,
            "margin": quantities.margin,
            "claims": [claim.to_json(fold, items) for claim in claims],
        }
    )
    texts["claims.md"] = _claims_markdown(quantities, claims)
    texts["numbers.json"] = _numbers_json(quantities.ledger, texts, drawn)
    texts["README.md"] = _readme(report, quantities, command, drawn)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


# --- LaTeX -------------------------------------------------------------------------------------


def _figure_tex(drawn: Drawn) -> str:
    return "\n".join([
        r"\begin{figure}[htbp]", r"\centering",
        f"\\includegraphics[width=\\linewidth]{{figures/{drawn.key}.pdf}}",
        f"\\caption{{{drawn.caption}}}\\label{{fig:{drawn.key.replace('_', '-')}}}",
        r"\end{figure}",
    ])  # fmt: skip


def _main_tex(quantities: Quantities, tables: Sequence[str]) -> str:
    """The whole as one document, to compile and to copy from."""
    model = quantities.fact(
        "model", [quantities.study.some_run], "config.json", "config.model", style="code"
    )
    long = ("per-task", "claims", "runs")
    results = [key for key in tables if key not in (*long, "training")]
    parts = [
        r"\documentclass[10pt]{article}",
        r"\usepackage[a4paper,margin=2.2cm]{geometry}",
        *(f"\\usepackage{{{name}}}" for name in PACKAGES),
        MACRO_NAME,
        f"\\title{{Bidirectional prefill in {model}: methods, results and claims}}",
        r"\author{}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
        r"\section{Methods}",
        r"\input{methods}",
        *(f"\\input{{tables/{key}}}" for key in tables if key == "training"),
        r"\section{Results}",
        r"\input{figures}",
        *(f"\\input{{tables/{key}}}" for key in results),
        r"\clearpage  % floats before the long tables, so that their numbers stay in order",
        *(f"\\input{{tables/{key}}}" for key in tables if key == "per-task"),
        r"\section{Claims and runs}",
        *(f"\\input{{tables/{key}}}" for key in tables if key in ("claims", "runs")),
        r"\bibliographystyle{plain}",
        r"\bibliography{references}",
        r"\end{document}",
    ]
    return "\n".join(parts) + "\n"


# --- the ledgers ---------------------------------------------------------------------------------


def _fold(quantities: Quantities) -> tuple[str, str]:
    """The fold that the claims were made on, and which items these are."""
    settings = quantities.study.some_run.settings
    fold = settings.get("fold")
    limit = settings.get("limit")
    n = (quantities.study.some_run.metrics or {}).get("n_items")
    items = "all items" if limit is None else f"{settings.get('sample', 'first')} {limit} a task"
    if "limit" not in settings:
        items = "not recorded"
    split = settings.get("split")
    where = f" of the split {split}" if split else ""
    return fold or "not recorded", f"{items}{where}" + (f", n = {n:,}" if n else "")


def _claims_markdown(quantities: Quantities, claims: Sequence[Claim]) -> str:
    fold, items = _fold(quantities)
    counts = {s: sum(c.status == s for c in claims) for s in ("supported", "undecided", "refuted")}
    lines = [
        "# Claims",
        "",
        "Every status is computed from the 95 % interval of the number: a claim of a difference is "
        "supported by an interval on its side of 0, refuted by one on the other side or wholly "
        f"within {100 * quantities.margin:g} point"
        f"{'' if quantities.margin == 0.01 else 's'} of 0, and undecided otherwise. A claim of "
        '"costs nothing" or "reaches" is supported only by an interval wholly within that margin '
        "or above 0. A single task must also pass Holm's adjustment.",
        "",
        f"Fold: {escape(fold)} ({escape(items)}). "
        + ", ".join(f"{n} {status}" for status, n in counts.items())
        + ".",
    ]
    for claim in claims:
        lines += ["", f"## {claim.id}: {escape(claim.statement.plain)}", ""]
        rows = [
            f"Status: **{claim.status}**" + (f" ({escape(claim.reason)})" if claim.reason else "")
        ]
        if claim.interval:
            value, *ends = (entry.text for entry in claim.interval)
            within = f" (95 % CI {ends[0]} to {ends[1]})" if ends else " (no interval)"
            rows.append(f"Number: {escape(claim.quantity)}: {value} points{within}")
        rows += [
            f"Test: {claim.test}",
            f"Would be falsified by: {claim.falsifier}",
            "Runs: " + ", ".join(map(code, claim.runs)),
            "Entries of numbers.json: "
            + ", ".join(code(entry.key) for entry in claim.numbers if entry.style == "number"),
        ]
        rows += [f"Caution: {escape(caution)}" for caution in claim.cautions]
        lines += [f"- {row}" for row in rows]
    return "\n".join(lines) + "\n"


def _numbers_json(ledger: Ledger, texts: Mapping[str, str], drawn: Sequence[Drawn]) -> str:
    """Every entry, with the files that print it."""
    where: dict[str, list[str]] = {}
    for name, text in texts.items():
        if name.endswith(".tex"):
            for key in dict.fromkeys(re.findall(r"\\fromrun\{([^}]*)\}", text)):
                where.setdefault(key, []).append(name)
    for one in drawn:
        for entry in one.entries:
            where.setdefault(entry.key, []).append(f"figures/{one.key}")
    numbers = {
        key: {**entry.to_json(), "printed_in": where[key]}
        for key, entry in ledger.entries.items()
        if key in where
    }
    unprinted = {key: entry.to_json() for key, entry in ledger.entries.items() if key not in where}
    parts: dict[str, Mapping[str, Any]] = {
        "statistics": STATISTICS,
        "numbers": numbers,
        "only_in_claims": unprinted,
    }
    return "{\n" + ",\n".join(f'"{name}": {_lines(part)}' for name, part in parts.items()) + "\n}\n"


def _lines(entries: Mapping[str, Any]) -> str:
    """A JSON object, one line an entry."""
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}" if lines else "{}"


# --- the README ----------------------------------------------------------------------------------


def _readme(report: Report, quantities: Quantities, command: str, drawn: Sequence[Drawn]) -> str:
    runs = " ".join(quantities.all_runs)
    margin = f"{100 * quantities.margin:g}"
    named = (
        f"python -m bidir_core report {runs} --metric {quantities.metric} --margin {margin} "
        "--paper DIR"
    )
    versions = [f"bidir_core {__version__}"]
    commit = git_commit()
    versions += [f"commit {commit}"] if commit else []
    versions += [f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in _VERSIONS]
    lines = [
        f"# Paper: {escape(report.study.model)}",
        "",
        "- `main.tex`: everything as one document; compile with `pdflatex main`, `bibtex main`, "
        "`pdflatex main` twice",
        "- `methods.tex`, `figures.tex`, `tables/*.tex`: the parts, to `\\input` or copy; they need "
        f"the packages {', '.join(PACKAGES)}",
        "- `figures/`: " + (", ".join(one.key for one in drawn) or "none") + ", as PDF and SVG",
        "- `references.bib`: the works that the texts cite",
        "- `claims.md`, `claims.json`: what is claimed, by which runs and test, what would falsify "
        "it, and its status",
        "- `numbers.json`: every printed number, with the runs it is from and how it was got. In "
        "the TeX files a number stands as `\\fromrun{key}{text}`, which prints the text",
        "- `manifest.json`: what was written, with hashes; running the command again replaces the "
        "folder only if nothing else was put into it or changed",
        "",
        "## How it was made",
        "",
        *(["    " + command, ""] if command else []),
        "The same runs by name:",
        "",
        "    " + named,
        "",
        "The same runs and versions give the same bytes: " + ", ".join(versions) + ".",
    ]
    if "forest" not in {one.key for one in drawn}:
        lines += ["", "No forest plot: none of these runs can be paired item by item."]
    if report.study.left_out:
        lines += ["", "## Runs left out", ""]
        lines += [f"- {code(run)}: {escape(why)}" for run, why in report.study.left_out]
    return "\n".join(lines) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
