"""Runs -> a report: Markdown in the shape of the published summary, and CSV tables beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from bidir_core.analyse import stats
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.pairing import check_metric
from bidir_core.analyse.study import Study, items_key, make_study, swept
from bidir_core.common.errors import UserError
from bidir_core.common.files import replacing
from bidir_core.data.assets import EMBEDDED_MODEL
from bidir_core.regimes import parse_regime
from bidir_core.report.sections import Report, build_sections
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import EVAL_DIRS
from bidir_core.runs.run import Run


def build_report(
    runs: Sequence[Run] | None = None,
    *,
    model: str | None = None,
    pair: tuple[Run, Run] | None = None,
    regime: str | None = None,
    metric: str = "acc",
    margin: float = stats.MARGIN,
    roots: Sequence[Path | str] | None = None,
) -> Report:
    """Report on these runs or, without any, on the fullest set of stages that ``model`` has.

    ``pair``: instead, everything over the items of its first run, about the regime of its second.
    ``regime``: the bidirectional one that the answer is about; None for the plain one or, without
    it, the commonest. ``metric``: acc or acc_norm. ``margin``: the difference that counts as none,
    as a fraction. Raises UserError if there is no finished evaluation.
    """
    checked = check_metric(metric)
    everything = list_runs(roots)
    if runs:
        study = make_study(runs, others=everything)
    elif pair is not None:
        study = around(*pair, everything)
    else:
        study = choose_study(model, everything)
    if regime is not None:
        study = about(study, regime)
    numbers = Findings(study, checked, margin)
    return Report(study, tuple(build_sections(numbers)), numbers)


def choose_study(model: str | None, runs: Sequence[Run]) -> Study:
    """The runs to report on when nobody names them.

    Of a model's finished runs over the same items: those that fill most stages, then those with
    most items; the newest of each kind. The model is the embedded one unless named.
    """
    evaluated = [run.model for run in runs if run.state in ("done", "reference") and run.tasks]
    wanted = model or (EMBEDDED_MODEL if EMBEDDED_MODEL in evaluated else None)
    if wanted is None:
        wanted = next((run.model for run in runs if run.state == "done"), None)
    finished = [run for run in runs if run.model == wanted and run.state in ("done", "reference")]
    if not finished:
        known = ", ".join(sorted({name for name in evaluated if name})) or "none"
        raise UserError(
            f"there are no finished runs of '{wanted or 'any model'}' to report on; "
            f"models with runs: {known}"
        )
    # Fine-tunes come in through the evaluations of their checkpoints.
    # An imported run has no token counts and no probe: it is in a report only if it is named.
    evals = [run for run in finished if run.config.get("kind") not in ("finetune", "imported")]
    return make_study([*evals, *swept(evals, finished)], others=runs, mixed_dtypes=False)


def about(study: Study, regime: str) -> Study:
    """The study with another bidirectional regime as its main one; UserError if nobody ran it."""
    wanted = str(parse_regime(regime))
    known = study.bidirectional_regimes(study.base)
    if wanted not in known:
        raise UserError(
            f"the untrained model was not run under '{wanted[:80]}' on these items; "
            f"choose from {', '.join(known) or 'no regime: none was run'}"
        )
    return replace(study, regime=wanted)


def around(a: Run, b: Run, runs: Sequence[Run]) -> Study:
    """A study of the items, model and number format of run ``a``, about the regime of run ``b``
    if that is one of the untrained model."""
    wanted = items_key(a, dtype=True)
    evaluations = [run for run in (*runs, a, b) if run.stage in EVAL_DIRS or run.is_point]
    evaluations += swept(evaluations, runs)
    alike = [run for run in evaluations if items_key(run, dtype=True) == wanted]
    study = make_study(alike, others=runs)
    is_known = b.regime in study.bidirectional_regimes(study.base)
    return replace(study, regime=b.regime) if is_known else study


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
    texts = {}
    for path in filter(None, (out, html)):
        if path.suffix == ".html":
            from bidir_core.report.html_page import page

            texts[path] = page(report, only)
        else:
            texts[path] = report.markdown(only)
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
