"""The report as one HTML file: the Markdown's content, inert, and with nothing to fetch."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bidir_core.analyse.flips import flips
from bidir_core.cli import main
from bidir_core.common.formatting import minus
from bidir_core.report import html_page
from bidir_core.report.report import build_report
from bidir_core.report.rows import Row, interval_rows
from bidir_core.report.sections import Report
from bidir_core.runs.find import list_runs
from tests.e2e.seed import seed_hostile
from tests.report_runs import FOLDERS, make_run, report

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """Elements, their attributes, texts by element, tables by rows; fails on crossed tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def study(repaired_report) -> Report:
    return repaired_report


@pytest.fixture(scope="module")
def text(study) -> str:
    return html_page.page(study)


@pytest.fixture(scope="module")
def parsed(text) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Report:
    root = tmp_path_factory.mktemp("hostile")
    seed_hostile(root)
    return report(root)


def flat(cell: str) -> str:
    return " ".join(cell.split())


def test_it_has_the_sections_of_the_markdown_and_two_of_its_own(study, parsed):
    headings = re.findall(r"^##+ (.*)", study.markdown(), re.M)
    shown = [*parsed.texts["h2"], *parsed.texts["h3"]]
    assert shown == [*headings, "The Items Behind the Numbers: Flips", "How This Was Made"]


def test_it_has_every_cell_of_every_table(study, parsed):
    rows = {tuple(map(flat, row)) for row in parsed.rows}
    assert len(study.tables) > 8
    for table in study.tables.values():
        for row in table.without_empty_columns().texts():
            assert tuple(minus(flat(cell)) for cell in row) in rows, (table.key, row)


def test_the_file_names_no_other(text, parsed):
    for tag, attributes in parsed.elements:
        assert not {"srcset", "poster", "action", "formaction", "background", "ping"} & {
            *attributes
        }
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not {"iframe", "object", "embed", "base", "form", "img"} & {
        t for t, _ in parsed.elements
    }
    css, scripts = " ".join(parsed.texts["style"]), parsed.texts["script"]
    assert not re.search(r"@import|url\(|http", css)
    ids = [attributes.get("id") for attributes in parsed.named("script")]
    own_scripts = scripts[-1] + scripts[ids.index("figures")]
    assert not re.search(r"fetch|XMLHttp|import\(|sendBeacon|WebSocket|https?:", own_scripts)
    assert len(text.encode()) < 8_000_000


def test_charts_are_whole_and_drawn_from_the_tables(study, parsed):
    ids = [attributes.get("id") for attributes in parsed.named("script")]
    figures = json.loads(parsed.texts["script"][ids.index("figures")])
    drawn = [a["data-chart"] for a in parsed.named("div") if "data-chart" in a]
    assert drawn == ["curve"]
    assert set(figures) == {*drawn, "stem"}
    assert all(a.get("aria-label") for a in parsed.named("div") if "data-chart" in a)
    assert parsed.texts["figcaption"] == [
        "Stage 2 minus stage 1, by task",
        "Every stage against stage 1",
        "Repair fine-tune (3B) minus stage 1, by task",
        "Recovery while training",
    ]
    named = list(zip([a.get("class") for a in parsed.named("span")], parsed.texts["span"]))
    numbers = [text for name, text in named if name == "number"]
    rows = study.tables["macro"].rows
    wanted = [f"{100 * row[5]:.1f} %" for row in rows]
    assert [text.partition(",")[0] for text in numbers[6 : 6 + len(rows)]] == wanted


def test_a_row_lies_where_its_number_says():
    rows = [Row("a", "", -0.1, -0.2, 0.0), Row("<b>", "", 0.1, look="better", total=True)]
    chart = interval_rows(rows, reference=0.0, axis="points")
    lefts = [float(x) for x in re.findall(r'class="(?:bar|mark)" style="left:([\d.]+)%', chart)]
    width = float(re.search(r"width:([\d.]+)%", chart)[1])
    zero = float(re.search(r"--at:([\d.]+)%", chart)[1])
    assert lefts[0] + width == pytest.approx(zero, abs=0.02)  # the interval ends at 0
    assert lefts[1] == pytest.approx(lefts[0] + width / 2, abs=0.02)
    assert lefts[2] - zero == pytest.approx(zero - lefts[1], abs=0.02)
    assert 0 < min(lefts) < max(lefts) < 100
    assert "&lt;b&gt;" in chart


def test_the_flips_are_those_that_moved_most(study, repaired):
    first = html_page.flip_tables(study.study, "acc", top=7)[0]
    by_id = {run.id: run for run in study.study.all_runs}
    a, b = by_id[first.run_a], by_id[first.run_b]
    frame = flips(a, b)
    for name in html_page.CLASSES:
        flipped = frame[frame["flip"] == name]
        assert first.counts[name] == len(flipped)
        shown = [row for row in first.rows if row.flip == name]
        largest = flipped["margin_change"].abs().nlargest(7).tolist()
        assert [abs(row.change) for row in shown] == pytest.approx(largest)
    row = first.rows[0]
    task, doc_id = row.item_id.split("/")
    for record, side in ((a.item(task, int(doc_id)), "ll_a"), (b.item(task, int(doc_id)), "ll_b")):
        assert [getattr(choice, side) for choice in row.choices] == record["ll"]
    assert [choice.gold for choice in row.choices].index(True) == record["gold"]


def test_compact_runs_without_the_data_say_so(study, repaired, monkeypatch):
    monkeypatch.setattr("bidir_core.data.item_texts.data_are_here", lambda: False)
    text = html_page.page(study)
    assert "These runs kept no texts" in text
    assert "choice 0" in text


def test_runs_without_items_have_no_flips(tmp_path):
    a = make_run(tmp_path, n_items=20)
    b = make_run(tmp_path, FOLDERS[False, True], n_items=20, regime="bidirectional", seed=1)
    for run in (a, b):
        (run.path / "items.parquet").unlink()
    assert "Not shown: it takes two runs" in html_page.page(report(tmp_path))


def test_hostile_texts_are_text(hostile):
    text = html_page.page(hostile)
    page = Page(text)
    assert len(page.named("script")) == 3
    assert len(page.named("style")) == 1
    tags = {tag for tag, names in page.elements if not names.get("href", "").startswith("#")}
    assert not {"img", "iframe", "form", "b", "a"} & tags
    assert "<script>window.hacked" not in text
    assert "<img" not in re.sub(r'<script id="plotly">.*?</script>', "", text, flags=re.S)
    assert "‹U+202E›drow‹U+202C› zero‹U+200B›width" in text
    assert not re.search("[\u200b\u202c\u202e]", text)
    assert "characters …]" in text  # the 100,000-character item is cut
    assert len(text) < 6_000_000


def test_the_command_in_the_file_writes_the_file_again(study, repaired, tmp_path, capsys):
    arguments = shlex.split(study.command(out=str(tmp_path / "r.html")))
    assert arguments[:4] == ["python", "-m", "bidir_core", "report"]
    assert main([*arguments[3:], "--runs-dir", str(repaired)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "r.html")]
    named = [run.id for run in study.study.all_runs]
    again = build_report([r for r in list_runs([repaired]) if r.id in named], roots=[repaired])
    assert (tmp_path / "r.html").read_text() == html_page.page(again)


def test_html_beside_markdown(repaired, tmp_path, capsys):
    out, html = tmp_path / "r.md", tmp_path / "more" / "r.html"
    line = ["report", "--runs-dir", str(repaired), "--out", str(out), "--html", str(html)]
    assert main([*line, "--sections", "scope,macro", "--csv"]) == 0
    files = [Path(name).name for name in capsys.readouterr().out.split()]
    assert files == ["r.md", "r.html", "r.macro.csv"]
    assert Page(html.read_text()).texts["h3"][:2] == ["Scope", "Macro Accuracy by Stage"]
    assert out.read_text().count("\n### ") == 2
