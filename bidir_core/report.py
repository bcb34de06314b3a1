"""Runs -> a report: Markdown in the shape of the published summary, and CSV tables beside it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bidir_core import stats
from bidir_core.atomic import replacing
from bidir_core.config import EMBEDDED_MODEL
from bidir_core.errors import UserError
from bidir_core.pairing import check_metric
from bidir_core.reporting.markdown import Table, escape
from bidir_core.reporting.numbers import Numbers
from bidir_core.reporting.section import ALL_SECTIONS, Section
from bidir_core.reporting.sections import build_sections
from bidir_core.reporting.study import Study, make_study
from bidir_core.store import Run, find_run, list_runs

__all__ = ["Report", "Section", "Table", "build_report", "choose_study", "write_report"]


@dataclass(frozen=True)
class Report:
    """A finished report: sections of Markdown paragraphs and tables.

    ``numbers`` computed them, and remembers every contrast.
    """

    title: str
    study: Study
    sections: tuple[Section, ...]
    numbers: Numbers = field(repr=False)

    @property
    def stem(self) -> str:
        """A file's name with run ids in it."""
        names = [re.sub(r"[^A-Za-z0-9._-]+", "-", run.path.name) for run in self.study.all_runs]
        more = f"_and-{len(names) - 2}-more" if len(names) > 2 else ""
        return "_".join(["report", *(name[:60] for name in names[:2])]) + more

    def chosen(self, only: Collection[str] | None = None) -> list[Section]:
        """All sections, or those with these keys (see :func:`check_sections`)."""
        check_sections(only)
        return [s for s in self.sections if only is None or s.key in only]

    def markdown(self, only: Collection[str] | None = None) -> str:
        """The whole report, or the sections with these keys."""
        shown = [section.markdown() for section in self.chosen(only)]
        return "\n\n".join([f"# {self.title}", *shown]) + "\n"

    def chosen_tables(self, only: Collection[str] | None = None) -> dict[str, Table]:
        """The tables of these sections by their keys."""
        return {table.key: table for section in self.chosen(only) for table in section.tables}

    @property
    def tables(self) -> dict[str, Table]:
        """Every table by its key."""
        return self.chosen_tables()


def check_sections(only: Collection[str] | None) -> None:
    """Raise UserError for a key that is no section's. ``flips`` is one that only HTML has."""
    for key in only or ():
        if key not in ALL_SECTIONS:
            raise UserError(
                f"there is no section '{key[:80]}'; choose from {', '.join(ALL_SECTIONS)}"
            )


def build_report(
    runs: Sequence[Run] | None = None,
    *,
    model: str | None = None,
    metric: str = "acc",
    margin: float = stats.MARGIN,
    roots: Sequence[Path | str] | None = None,
) -> Report:
    """Report on these runs or, without any, on the fullest set of stages that ``model`` has.

    ``metric``: acc or acc_norm. ``margin``: the difference that counts as none, as a fraction.
    Raises UserError if there is no finished evaluation.
    """
    checked = check_metric(metric)
    everything = list_runs(roots)
    study = make_study(runs, others=everything) if runs else choose_study(model, everything)
    numbers = Numbers(study, checked, margin)
    dates = [run.created for run in study.all_runs if run.created is not None]
    title = "Stage 1-4 Results Summary: " + escape(study.model)
    if dates:
        title += f" ({max(dates).date().isoformat()})"
    return Report(title, study, tuple(build_sections(numbers)), numbers)


def choose_study(model: str | None, runs: Sequence[Run]) -> Study:
    """The runs to report on when nobody names them.

    Of a model's finished runs over the same items: those that fill most stages, then those with
    most items; the newest of each kind. The model is the embedded one unless named.
    """
    evaluated = [run.model for run in runs if run.state in ("done", "reference") and run.tasks]
    wanted = model or (EMBEDDED_MODEL if EMBEDDED_MODEL in evaluated else None)
    if wanted is None:
        wanted = next((run.model for run in runs if run.state == "done"), None)
    mine = [run for run in runs if run.model == wanted and run.state in ("done", "reference")]
    if not mine:
        known = ", ".join(sorted({name for name in evaluated if name})) or "none"
        raise UserError(
            f"there are no finished runs of '{wanted or 'any model'}' to report on; "
            f"models with runs: {known}"
        )
    # Fine-tunes come in through the evaluations of their checkpoints.
    # An imported run, which knows no tokens and no probe, is reported on if somebody names it.
    evaluations = [run for run in mine if run.config.get("kind") not in ("finetune", "imported")]
    return make_study(evaluations, others=runs, mixed_dtypes=False)


def write_report(
    report: Report,
    out: Path,
    *,
    csv: bool = False,
    html: Path | None = None,
    only: Collection[str] | None = None,
) -> list[Path]:
    """Write the report to ``out`` (``.md`` or ``.html``) and return the files, each whole or absent.

    ``csv``: also ``<stem>.<table>.csv`` beside it. ``html``: also that file. ``only``: keys of the
    sections to write; None means all.
    """
    texts = {path: _text(report, path, only) for path in (out, html) if path is not None}
    if csv:
        for key, table in report.chosen_tables(only).items():
            texts[out.with_name(f"{out.stem}.{key}.csv")] = table.csv()
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); give another file"
            ) from error
    return list(texts)


def _text(report: Report, path: Path, only: Collection[str] | None) -> str:
    if path.suffix == ".html":
        from bidir_core.reporting.html_page import page

        return page(report, only)
    return report.markdown(only)


def report_file(flag: str, name: str, *suffixes: str) -> Path:
    """Where a report goes; UserError for a name that says no format that it is written in."""
    path = Path(name).expanduser()
    if path.suffix not in suffixes:
        kinds = {".md": ".md (Markdown)", ".html": ".html (one self-contained page)"}
        wanted = " or ".join(kinds[suffix] for suffix in suffixes)
        raise UserError(f"{flag} {name}: give a name that ends in {wanted}")
    return path


def report_command(args: argparse.Namespace) -> int:
    """``report RUN... --out FILE --paper DIR``, one or both; 0 when the files are on disk."""
    if not 0 < args.margin < 100:
        raise UserError(f"--margin {args.margin:g}: give a number of points above 0, such as 1")
    if args.out is None and args.paper is None:
        raise UserError("say where the report goes: --out FILE.md, --out FILE.html or --paper DIR")
    if args.out is None and (args.csv or args.html or args.sections):
        raise UserError("--csv, --html and --sections go with --out FILE; give one")
    if args.paper is not None:
        from bidir_core.paper.write import check_paper_folder

        check_paper_folder(args.paper)
    out = report_file("--out", args.out, ".md", ".html") if args.out is not None else None
    html = report_file("--html", args.html, ".html") if args.html else None
    only = [key for key in args.sections.split(",") if key] if args.sections else None
    check_sections(only)
    roots = [args.runs_dir] if args.runs_dir else None
    report = build_report(
        [find_run(run, roots) for run in args.runs],
        model=args.model,
        metric=args.metric,
        margin=args.margin / 100,
        roots=roots,
    )
    if out is not None:
        for path in write_report(report, out, csv=args.csv, html=html, only=only):
            print(path)
    if args.paper is not None:
        from bidir_core.paper.write import write_paper

        print(write_paper(report, args.paper, command=_paper_command(args)))
    return 0


def _paper_command(args: argparse.Namespace) -> str:
    """The line that makes this paper, wherever it goes."""
    words = ["python", "-m", "bidir_core", "report", *args.runs]
    for flag in ("model", "metric", "margin", "runs_dir"):
        value = getattr(args, flag)
        if value is not None:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words += ["--" + flag.replace("_", "-"), shown]
    return shlex.join([*words, "--paper", "DIR"])
