"""The material of a paper in one folder: tables, figures, number macros and claims.

The folder is built beside its place and moved there in one rename. Its tables are the report's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast, TaskDelta, cell_title, level
from bidir_core.analyse.judgement import Findings
from bidir_core.analyse.study import CAUSAL, Arm, Cell, Study, ordered_cells
from bidir_core.analyse.verdict import Verdict
from bidir_core.common import formatting
from bidir_core.report.made_folder import MadeFolder
from bidir_core.report.markdown import Column, Table
from bidir_core.report.paper_figures import FIGURES, METRICS, save, style
from bidir_core.report.sections import Report, build_sections

PAPER = MadeFolder("--paper", "bidir_core report --paper")
Tell = Callable[[float, str], object]  # the share that is done, and what comes next


def write_paper(report: Report, folder: Path | str) -> Path:
    """Write the folder of a paper and return it.

    Raises UserError if the folder holds anything that this command did not write, or cannot be
    written.
    """
    return PAPER.make(folder, _command(report), lambda path: write_files(report, path))


def zip_paper(report: Report, name: str, tell: Tell) -> bytes:
    """The same folder as one ZIP file, in which it is called ``name``. ``tell`` hears how far it is."""
    return PAPER.zipped(name, _command(report), lambda path: write_files(report, path, tell))


def _command(report: Report) -> str:
    return report.command(out="DIR", flag="--paper")


# --- the files -----------------------------------------------------------------------------------


def write_files(report: Report, folder: Path, tell: Tell = lambda share, next_step: None) -> None:
    """Write tables, figures, number macros and claims into an empty folder."""
    tell(0.0, "numbers and claims")
    numbers, tables = _without_leaky(report)
    claims = make_claims(numbers)
    (folder / "tables").mkdir()
    for table in (*tables.values(), claims_table(claims)):
        if table:
            _write(folder / "tables" / f"{table.key}.tex", tabular(table) + "\n")
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


# --- claims -------------------------------------------------------------------------------------
# What is claimed, by which runs and test, what would refute it, its status. A status is computed,
# never written: ``supported``, ``refuted`` or ``undecided``, from where the 95 % interval lies. A claim
# whose runs are missing is undecided, and says that it is untested.

Status = Literal["supported", "undecided", "refuted"]
Wanted = Literal["lower", "higher", "not lower"]

_HOLDS: dict[Wanted, tuple[Verdict, ...]] = {
    "lower": ("worse",),
    "higher": ("better",),
    "not lower": ("equivalent", "better"),
}
PAIRED = (
    "paired difference over the same items: Tango's score interval by task, combined over tasks "
    "by MOVER"
)
PAIRED_SEEDS = "paired difference over the same items, mean over seeds, normal interval"
UNPAIRED = "unpaired difference of accuracies, normal interval: wider than a paired one would be"
NO_TEST = "none: too few numbers are known"
INTERACTION = "per-item interaction over the same items, mean over tasks, normal interval"
RULE = (
    "A claim of a difference is supported by a 95 % interval on its side of 0, refuted by one on "
    "the other side or wholly within the margin of 0, and undecided otherwise. A claim of no cost "
    "or of a level reached is supported by an interval wholly within the margin or above 0, "
    "refuted by one below 0 that is not within the margin. A single task must also pass Holm's "
    "adjustment."
)
MCNEMAR = "exact McNemar test, Holm-adjusted over the tasks, and Tango's score interval"


@dataclass(frozen=True)
class Claim:
    """``quantity`` is what ``interval`` estimates, as a fraction; ``numbers`` stand beside it."""

    claim: str
    status: Status
    reason: str
    quantity: str
    numbers: dict[str, Any]
    test: str
    runs: tuple[str, ...]
    cautions: tuple[str, ...]
    interval: stats.Estimate | None


def status_of(verdict: Verdict, wanted: Wanted) -> Status:
    """Whether a verdict bears out a claim; no difference beyond the margin refutes "lower"."""
    if verdict == "undecided":
        return "undecided"
    return "supported" if verdict in _HOLDS[wanted] else "refuted"


def make_claims(numbers: Findings) -> list[Claim]:
    """Every claim that the study's runs speak to, in reading order."""
    study, metric = numbers.study, METRICS[numbers.metric]
    claims: list[Claim] = []

    def compare(a: Cell, b: Cell, wanted: Wanted, statement: str) -> None:
        contrast = numbers.between(a, b)
        if contrast is not None:
            claims.append(_of_contrast(numbers, contrast, wanted, statement))

    no_cost = f"costs no macro {metric} under causal attention."
    for regime in study.bidirectional_regimes(study.base):
        stage2, lead = (study.base, regime), f"Without training, {regime} prefill"
        compare(numbers.stage1, stage2, "lower", f"{lead} lowers macro {metric}.")
        damage = numbers.between(numbers.stage1, stage2)
        if damage is not None and damage.basis == "paired":
            for row in damage.tasks:
                statement = f"{lead} lowers {metric} on {row.task}."
                claims.append(_of_contrast(numbers, damage, "lower", statement, row))
        if regime != study.regime:
            statement = f"{lead} keeps more macro {metric} than {study.regime} prefill."
            compare((study.base, study.regime), stage2, "higher", statement)
    for arm in study.trained("3B", "distill"):
        name, regime = arm.title, study.own_regime(arm)
        stage4, causal = (arm, regime), (arm, CAUSAL)
        training = f"Fine-tuning {name}" if arm.code == "3B" else f"Distillation ({name})"
        statement = f"{training} raises macro {metric} under {regime} prefill."
        compare((study.base, regime), stage4, "higher", statement)
        statement = (
            f"{name} under {regime} prefill reaches the macro {metric} of the base model under "
            "causal attention."
        )
        compare(numbers.stage1, stage4, "not lower", statement)
        if study.runs(*stage4):
            claims.append(_interaction(numbers, arm))
        compare(numbers.stage1, causal, "not lower", f"{training} {no_cost}")
        control = study.control_of(arm) if arm.code == "3B" else None
        if control is not None:
            statement = (
                f"At equal training, {regime} prefill costs no macro {metric}: {name} under it "
                f"against {control.title} under causal attention."
            )
            compare((control, CAUSAL), stage4, "not lower", statement)
            statement = f"Training {name} under the mask, instead of {control.title}, {no_cost}"
            compare((control, CAUSAL), causal, "not lower", statement)
    return claims


def _of_contrast(
    numbers: Findings,
    contrast: Contrast,
    wanted: Wanted,
    statement: str,
    row: TaskDelta | None = None,
) -> Claim:
    """A claim about the direction of a contrast, or of one task of it."""
    if row is not None:
        test = MCNEMAR
    elif contrast.basis == "paired":
        test = PAIRED if contrast.n_seeds < 2 else PAIRED_SEEDS
    else:
        test = UNPAIRED if contrast.basis == "unpaired" else NO_TEST
    source, judgement = row or contrast, (row or contrast).judgement
    values: dict[str, Any] = {
        "first": source.acc_a,
        "second": source.acc_b,
        "difference": row.delta if row is not None else contrast.value,
    }
    if row is not None:
        values |= {"p": judgement.p_values, "p_holm": judgement.p_adjusted}
    return Claim(
        statement,
        status_of(judgement.verdict, wanted),
        "" if source.interval else "no interval can be computed from what the runs hold",
        contrast.title + (f", {row.task}" if row else ""),
        values | _ends(source.interval),
        test,
        tuple(dict.fromkeys(run for pair in contrast.runs for run in pair)),
        (*_fold_caution(numbers), *contrast.notes),
        source.interval,
    )


def _interaction(numbers: Findings, arm: Arm) -> Claim:
    """The only claim of repair: what the mask's own training adds beyond ordinary tuning."""
    study, regime = numbers.study, numbers.study.own_regime(arm)
    statement = (
        f"Part of what {arm.title} gains over the base model under {regime} prefill is repair of "
        "the mask, not ordinary tuning."
    )
    interaction = numbers.interaction(arm)
    if isinstance(interaction, str):
        cells = [study.runs(arm, regime), study.runs(arm, CAUSAL)]
        runs = tuple(run.id for by_seed in cells for run in by_seed.values())
        quantity, reason = "interaction with the control", f"not tested: {interaction}"
        return Claim(statement, "undecided", reason, quantity, {}, INTERACTION, runs, (), None)
    estimate = interaction.effect.estimate
    return Claim(
        statement,
        status_of(numbers.judged(estimate).verdict, "higher"),
        "",
        f"({arm.title} minus {interaction.control.title} under {regime}) - (the same under causal)",
        {"difference": estimate.value} | _ends(estimate),
        INTERACTION,
        tuple(dict.fromkeys(run for ids in interaction.runs for run in ids)),
        _fold_caution(numbers),
        estimate,
    )


def _fold_caution(numbers: Findings) -> tuple[str, ...]:
    """What a reader of a claim must know besides its status."""
    if numbers.study.some_run.settings.get("fold") != "explore":
        return ()
    return ("explore fold: for choosing recipes; a claim needs the confirm fold",)


def _ends(interval: stats.Estimate | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval.low, "high": interval.high, "n": interval.n}


# The claims as a table and as JSON.


def claims_table(claims: Iterable[Claim]) -> Table:
    difference = Column("Difference (points)", "estimate", "no interval")
    columns = [Column("Claim"), Column("Statement"), difference, Column("Status")]
    rows = [(f"C{i}", c.claim, c.interval, c.status) for i, c in enumerate(claims, 1)]
    return Table("claims", columns, list(rows))


def claims_json(numbers: Findings, claims: Sequence[Claim]) -> dict[str, Any]:
    """Differences and interval ends are fractions, not points."""
    settings = numbers.study.some_run.settings
    return {
        "metric": numbers.metric,
        "margin": numbers.margin,
        **{name: settings.get(name) for name in ("split", "fold", "limit", "sample")},
        "rule": RULE,
        "claims": [
            {"id": f"C{number}"} | {k: v for k, v in vars(claim).items() if k != "interval"}
            for number, claim in enumerate(claims, 1)
        ],
    }


# --- number macros ---------------------------------------------------------------------------------

_MACROS = r"""% \runnumber{KEY} prints a number of the runs; an unknown key is an error.
% Differences, their ends and the margin are in points, what is kept is in per cent.
\makeatletter
\providecommand{\runnumber}[1]{\@ifundefined{run:#1}{\errmessage{no number '#1'}}{\@nameuse{run:#1}}}
"""


def number_macros(numbers: Findings) -> str:
    """A TeX file that defines every number of :func:`printed_numbers` under its key."""
    lines = [
        f"\\@namedef{{run:{key}}}{{{number(text)}}}"
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
        while key in printed:  # names that give the same key are numbered
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
            key = f"{cell_title(study, cell)}/macro/{numbers.metric}"
            add(key, f"{accuracy.value:.4f}")
            for end in ("low", "high") if accuracy.interval is not None else ():
                add(f"{key}/{end}", f"{getattr(accuracy.interval, end):.4f}")
    for contrast in numbers.contrasts(leaky=False):
        title = contrast.title
        add_difference(f"{title}/macro", contrast.value, contrast.interval, contrast.n)
        floors = (("chance", contrast.above_chance), ("no-context", contrast.above_floor))
        for floor, kept in floors:
            for part in ("value", "low", "high"):
                value = getattr(kept, part, None)
                if value is not None:
                    add(f"{title}/kept-above-{floor}/{part}", f"{100 * value:.1f}")
        for row in contrast.tasks:
            key, p_holm = f"{title}/{row.task}", row.judgement.p_adjusted
            add_difference(key, row.delta, row.interval, row.n)
            if p_holm:
                add(f"{key}/p-holm", " / ".join(map(formatting.p_text, p_holm)))
    for arm in study.trained("3B", "distill"):
        interaction = numbers.interaction(arm)
        if not isinstance(interaction, str):
            by_task = {"macro": interaction.effect.estimate, **interaction.effect.per_task}
            for task, estimate in by_task.items():
                key = f"interaction {arm.title}/{task}"
                add_difference(key, estimate.value, estimate, estimate.n)
    return printed


# --- LaTeX ----------------------------------------------------------------------------------------
# Names of models, tasks, runs and files come from outside: everything goes through :func:`escape`, so
# that no text can start a command, and a character that pdfLaTeX cannot set becomes its code point.

_COMMANDS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
}

# Two hyphens side by side would be set as one longer dash.
_LIGATURES = re.compile(r"(?<=-)(?=-)")
LONG_CELL = 32  # characters: a column of text with a longer cell wraps
LONG_TABLE = 30  # rows: a longer table runs over pages


def escape(text: object) -> str:
    """Text from outside as one line of inert LaTeX."""
    return _LIGATURES.sub("{}", "".join(map(_character, " ".join(str(text).split()))))


def _character(character: str) -> str:
    if character in _COMMANDS:
        return _COMMANDS[character]
    if " " <= character <= "~":
        return character
    is_letter = "À" <= character <= "ÿ" and unicodedata.category(character).startswith("L")
    return character if is_letter else f"[U+{ord(character):04X}]"


def code(text: object) -> str:
    """Text from outside in typewriter, which may break after a separator."""
    return r"\texttt{" + re.sub(r"(\\_|[/:,=-])(?=.)", r"\1\\allowbreak{}", escape(text)) + "}"


def number(text: str) -> str:
    """A printed number: ``-4.7`` gets a true minus, ``51.8 %`` a thin space, ``<`` its math."""
    shown = escape(text).replace(r" \%", r"\,\%").replace(r"\textless{}", "$<$")
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", shown)


def tabular(table: Table) -> str:
    """The table in booktabs style, without empty columns; a long one as a longtable.

    Packages: booktabs, array and longtable. There is no float and no caption around it.
    """
    table = table.without_empty_columns()
    cells = table.texts()
    specs, writers = [], []
    for column, texts in zip(table.columns, zip(*cells, strict=True), strict=True):
        writers.append(code if column.kind == "code" else escape if column.is_text else number)
        if writers[-1] is number:
            specs.append("r")
        elif max(map(len, texts)) > LONG_CELL:
            specs.append(r">{\raggedright\arraybackslash}p{5cm}")
        else:
            specs.append("l")
    header = " & ".join(escape(column.title) for column in table.columns) + r" \\"
    lines = [
        " & ".join(write(text) if text else "" for write, text in zip(writers, row)) + r" \\"
        for row in cells
    ]
    environment = "longtable" if len(lines) > LONG_TABLE else "tabular"
    repeat = [r"\endhead"] if environment == "longtable" else []
    return "\n".join(
        [
            f"\\begin{{{environment}}}{{@{{}}{''.join(specs)}@{{}}}}",
            r"\toprule",
            header,
            r"\midrule",
            *repeat,
            *lines,
            r"\bottomrule",
            f"\\end{{{environment}}}",
        ]
    )
