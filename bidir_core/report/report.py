"""Runs -> a report: Markdown in the shape of the published summary, and CSV tables beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from bidir_core.analyse import stats
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.pairing import check_metric
from bidir_core.analyse.study import Study, make_study
from bidir_core.common.errors import UserError
from bidir_core.common.files import replacing
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.report.markdown import escape
from bidir_core.report.sections import Report, build_sections
from bidir_core.runs.find import list_runs
from bidir_core.runs.run import Run


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
    numbers = Findings(study, checked, margin)
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
        from bidir_core.report.html_page import page

        return page(report, only)
    return report.markdown(only)
