"""The report as a file that was mailed, and the Report page's files, in a real browser."""

import csv
import io
import re
import zipfile
from pathlib import Path

import pytest

from bidir_core.common.formatting import minus
from bidir_core.report.report import build_report, write_report
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from tests.e2e.driving import chosen, go, idle, main_text

pytest.importorskip("playwright")


def write(folder: Path, runs) -> Path:
    return write_report(build_report(runs), folder / "report.html")[0]


@pytest.fixture(scope="module")
def mailed(repaired, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("mailed"), list_runs([repaired]))


@pytest.fixture(scope="module")
def hostile(runs, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("hostile"), [runs["hostile1"], runs["hostile2"]])


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), [runs["stage1"], runs["stage2"]])


def read(tab, file: Path) -> None:
    tab.page.goto(file.as_uri())
    tab.page.locator(".rows .mark").first.wait_for()


def visible_rows(tab) -> list[str]:
    return tab.page.locator("#flips-1 tr[data-flip]:visible").all_inner_texts()


def test_the_answer_comes_first(mailed, server, runs, tab):
    """Verdict and chart within the first 500 pixels, in the file and on the page."""
    tab.page.set_viewport_size({"width": 1440, "height": 900})
    read(tab, mailed)
    for address in (mailed.as_uri(), server.url("report", **chosen(runs))):
        if address.startswith("http"):
            go(tab, address, "Report")
        for words in ("strong >> text=points (", ".rows .total"):
            box = tab.page.locator(words).first.bounding_box()
            assert box["y"] + box["height"] <= 500, (address, words)
    assert "Appendix" in main_text(tab)
    assert len(main_text(tab).split("Appendix")[0].split()) <= 800
    tab.page.set_viewport_size({"width": 390, "height": 844})
    idle(tab)
    wide = "document.querySelector('[data-testid=stMain]').scrollWidth - innerWidth"
    assert tab.page.evaluate(wide) <= 0
    assert tab.page.locator("strong >> text=points (").first.bounding_box()["y"] < 500
    assert not tab.foreign()


@pytest.mark.parametrize("which", ["mailed", "hostile"])
def test_it_opens_alone_and_asks_for_nothing(which, tab, request):
    file = request.getfixturevalue(which)
    read(tab, file)
    tab.page.locator("#flips-1 summary").first.click()
    tab.page.wait_for_timeout(300)
    assert {url for url in tab.requests if not url.startswith("data:")} == {file.as_uri()}
    assert not tab.errors
    assert tab.page.evaluate("window.hacked") is None
    wanted = tab.page.locator("[data-chart]").count()
    assert tab.page.locator(".plot svg.main-svg:first-child").count() == wanted
    for width in (390, 1280, 1920):
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_even_a_script_in_it_can_load_nothing(mailed, tab):
    """The second lock: the file's own policy."""
    read(tab, mailed)
    blocked = tab.page.evaluate(
        """() => new Promise(done => {
            const seen = [];
            addEventListener('securitypolicyviolation', event => {
                seen.push(event.effectiveDirective);
                if (seen.length == 3) done(seen.sort());
            });
            new Image().src = 'http://evil.test/x.png';
            fetch('http://evil.test/y').catch(() => 0);
            const style = document.createElement('style');
            style.textContent = "@import 'http://evil.test/z.css'";
            document.head.append(style);
        })"""
    )
    assert blocked == ["connect-src", "img-src", "style-src-elem"]


def test_the_filter_of_the_flips(plain, runs, tab):
    read(tab, plain)
    everything = visible_rows(tab)
    assert len(everything) == 120
    tab.page.locator("#flips-1 [data-flip=broken]").first.click()
    broken = visible_rows(tab)
    assert len(broken) == 40
    assert all("broken" in row for row in broken)
    tab.page.locator("#flips-1 select").select_option("arc_easy")
    of_task = visible_rows(tab)
    assert 0 < len(of_task) < 40
    assert all("arc_easy/" in row for row in of_task)
    word = re.findall(r"[a-z]{6,}", of_task[0].split("Question: ")[1])[0]
    tab.page.locator("#flips-1 input").fill(word.upper())
    found = visible_rows(tab)
    assert 0 < len(found) <= len(of_task)
    assert tab.page.locator("#flips-1 output").inner_text() == f"{len(found)} of 120 shown"
    row = tab.page.locator("#flips-1 tr[data-flip]:visible").first
    item = row.locator("code").first.inner_text()
    row.locator("summary").click()
    detail = row.locator(".choices").inner_text()
    for run in (runs["stage1"], runs["stage2"]):
        record = run.item("arc_easy", int(item.split("/")[1]))
        assert all(minus(f"{value:.2f}") in detail for value in record["ll"])
    tab.page.locator("#flips-1 input").fill("no such words")
    assert visible_rows(tab) == []


def test_charts_can_be_saved(mailed, tab):
    read(tab, mailed)
    with tab.page.expect_download() as wait:
        tab.page.locator("[data-format=png]").first.click()
    data = Path(wait.value.path()).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    assert re.fullmatch(
        r"report_smollm2-135m-instruct_[\d-]+_curve\.png", wait.value.suggested_filename
    )
    with tab.page.expect_download() as wait:
        tab.page.locator("[data-format=svg]").first.click()
    text = Path(wait.value.path()).read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "3B" in text
    assert "bidirectional" in text
    assert not tab.errors


def test_it_is_accessible(mailed, browser):
    pytest.importorskip("axe_playwright_python.sync_playwright")
    from tests.e2e.test_accessibility import COLOURS, VIOLATIONS, violations

    context = browser.new_context(bypass_csp=True)  # axe is a script, too
    page = context.new_page()
    page.goto(mailed.as_uri())
    page.locator(".rows .mark").first.wait_for()
    page.locator("#flips-1 summary").first.click()
    # Rows are alike, and axe looks at each of hundreds.
    page.evaluate("document.querySelectorAll('tr:nth-child(n+9)').forEach(row => row.remove())")
    for scheme, options in (("light", VIOLATIONS), ("dark", COLOURS)):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(200)  # the charts change their ink
        assert not violations(page, options), scheme
    context.close()


def test_light_dark_and_paper(mailed, tab):
    label = ".plot .ytick text"
    seen = {}
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        read(tab, mailed)
        seen[scheme] = tab.page.evaluate(
            f"[getComputedStyle(document.body).backgroundColor,"
            f" getComputedStyle(document.querySelector('{label}')).fill]"
        )
    assert seen["light"] == ["rgb(255, 255, 255)", "rgb(31, 35, 40)"]
    assert seen["dark"] == ["rgb(20, 23, 27)", "rgb(230, 232, 234)"]
    tab.page.emulate_media(color_scheme="light")  # a reader who switches while reading
    for _ in range(50):  # Playwright's own waiting evaluates strings, which the file forbids
        ink = tab.page.evaluate(f"getComputedStyle(document.querySelector('{label}')).fill")
        if ink == seen["light"][1]:
            break
        tab.page.wait_for_timeout(100)
    assert ink == seen["light"][1]
    folded = tab.page.locator("details.long:not([open])").count()
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.page.locator("details.long:not([open])").count() == 0
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.page.locator("details.long:not([open])").count() == folded


def test_the_pages_files(server, runs, tab):
    ids = [runs["stage1"].id, runs["stage2"].id]
    go(tab, server.url("report", **chosen(runs), runs="~".join(ids)), "Report")
    got = {}
    tab.page.get_by_role("button", name="Download").click()
    for label in ("HTML", "Markdown", "PNG", "CSV tables"):
        with tab.page.expect_download() as wait:
            tab.page.get_by_role("button", name=label, exact=True).click()
        name = wait.value.suggested_filename
        assert "smollm2-135m-instruct_20" in name
        got[name.rsplit(".", 1)[1]] = Path(wait.value.path()).read_bytes()
    made = build_report([runs["stage1"], runs["stage2"]], roots=[server.runs, COMMITTED_RUNS])
    assert got["md"].decode() == made.markdown()
    with zipfile.ZipFile(io.BytesIO(got["zip"])) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("contrasts.csv").decode())))
    assert rows[0]["Contrast"] == "stage 2 minus stage 1"
    assert got["png"].startswith(b"\x89PNG")
    assert b"Content-Security-Policy" in got["html"]
    assert got["html"].count(b"<tr data-flip") == 120
    assert not tab.foreign()
    assert not tab.unexpected_errors()
