"""The site to open from disk: complete, small, inert, and whole or not there at all."""

import json
import re
from pathlib import Path, PurePosixPath

import pytest

from bidir_core.cli import main
from bidir_core.report import share
from bidir_core.report.html_page import tied
from bidir_core.report.scorecard import answer, scorecard
from bidir_core.runs.dials import STRENGTHS
from bidir_core.runs.find import list_runs
from bidir_core.runs.layout import COMMITTED_RUNS
from bidir_core.runs.run import Run
from tests.app import pair
from tests.attend_factory import make_attend
from tests.e2e.seed import seed_hostile
from tests.factory import make_run, tear, unsealed
from tests.report.test_report_html import Page
from tests.ui.test_why_page import explain

LOADS = ("src", "href", "srcset", "poster", "data", "action", "formaction", "background", "ping")


def explained(root: Path, run: Run, **damage: object) -> None:
    """An explanation of one item, as the command writes it but for ``damage``."""
    path = unsealed(Run(explain(root, run))).path / "why.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | damage))


def write_dials(root: Path, item: str, **damage: object) -> None:
    """One item under the dials, right wherever its first token is causal, else up to 0.01."""
    right, wrong = [0, -300], [-300, 0]
    weak = [right if strength <= 0.01 else wrong for strength in STRENGTHS]
    scores = [[weak] * 5, [[right] * len(STRENGTHS)] * 5]
    model = "smollm2-135m-instruct"
    entry = {"model": model, "item": item, "dtype": "float32", "gold": 0, "scores": scores}
    (root / "dials.json").write_text(json.dumps({"schema": 1, "items": [entry | damage]}))


@pytest.fixture
def shown(root) -> dict[str, str]:
    """A model with an explained and an observed item, and one whose texts are hostile."""
    _, b = pair(root, n_items=200)
    explained(root, b)
    make_attend(root)
    write_dials(root, "piqa/3")
    seed_hostile(root)
    return share.rendered([root])


def test_every_link_leads_to_a_page_of_the_site_and_nothing_else_is_loaded(shown):
    assert len(shown) > 20
    for name, text in shown.items():
        for tag, attributes in Page(text).elements:
            assert not [key for key in attributes if key.startswith("on")], (name, tag)
            for key in LOADS:
                target = attributes.get(key, "#").partition("#")[0]
                if target and target != "data:,":
                    path = PurePosixPath(name).parent / target
                    parts: list[str] = []
                    for part in path.parts:
                        parts = parts[:-1] if part == ".." else [*parts, part]
                    assert "/".join(parts) in shown, (name, target)
            assert "@import" not in attributes.get("style", "")
            assert "url(" not in attributes.get("style", "")


def test_hostile_texts_are_text_on_every_page(shown):
    for name, text in shown.items():
        elements = Page(text).elements
        tags = [tag for tag, _ in elements]
        assert not {"img", "iframe", "form", "object", "embed", "base"} & set(tags)
        assert tags.count("script") == (name == "index.html")
        assert tags.count("style") == 1
        policy = next(a["content"] for tag, a in elements if a.get("http-equiv"))
        assert policy.startswith("default-src 'none'")
        assert not re.search("[\u200b\u202c\u202e]", text)
    everything = " ".join(shown.values())
    assert "&lt;img src=http://evil.test/a.png" in everything
    assert "&lt;img src=x&gt;model" in everything
    assert "‹U+202E›drow" in everything
    assert "characters …]" in everything  # the 100,000-character item is cut


def test_the_start_page_says_what_the_scorecard_says(shown, root):
    (first, *_) = scorecard(list_runs([root], points=True))
    text = shown["index.html"]
    assert answer(first).replace("'", "&#39;") in text
    assert tied(share.number(first.hurt)) in text
    for question in share.QUESTIONS.values():
        assert f'<th scope="col">{question}' in text
    assert text.count('<li data-flip="') == len(shown) - 1


def test_an_explained_item_has_its_why_and_attention_and_stands_first(shown):
    first = re.search(r'<li data-flip="[^>]*data-why="1"><a href="([^"]+)"', shown["index.html"])
    page = shown[first[1]]
    assert "Making layer 2 causal again alone turns the answer back." in page
    assert "&lt;img src=&#34;http://evil.example/x.png" in page  # its hostile first token
    assert "Where the prompt attends" in page
    table = page.partition('<section id="dials">')[2].partition("</section>")[0]
    marks = [row.count("✓") for row in re.findall(r"<tr><th scope=.row.>[^s].*?</tr>", table)]
    assert marks == [4, 11, 4, 4, 4, 4]  # nothing causal, the first token, 1, 2, 3 and 4 layers
    others = [text for name, text in shown.items() if name not in ("index.html", first[1])]
    assert all("Nobody has explained this item yet" in text for text in others)


DAMAGE = [{"layers": {}}, {"schema": 99}, {"tokens": [{"first": 0}]}, {"causal": None}]
DAMAGE += [{"pieces": 3}, {"doc_hash": "of other data"}]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_explanation_is_none(root, damage):
    _, b = pair(root, n_items=200)
    explained(root, b, **damage)
    assert "turns the answer back" not in " ".join(share.rendered([root]).values())


@pytest.mark.parametrize("damage", [{"scores": [1]}, {"gold": 7}, {"gold": None}, {"scores": None}])
def test_damaged_dials_are_none(root, damage):
    pair(root, n_items=200)
    write_dials(root, "piqa/3", **damage)
    assert "How much looking ahead it takes" not in " ".join(share.rendered([root]).values())
    (root / "dials.json").write_text("[")
    assert len(share.rendered([root])) > 10


def test_a_torn_run_is_said_and_takes_nothing_else_away(root):
    pair(root, n_items=200, model="whole/one")
    _, b = pair(root, n_items=200)
    tear(unsealed(b))
    files = share.rendered([root])
    assert "cannot be read" in files["index.html"]
    assert "one loses" in files["index.html"]  # the other model's answer
    assert len(files) > 10


def test_a_site_that_grows_too_large_shows_fewer_items(root, monkeypatch):
    pair(root, n_items=400)
    all_files = share.rendered([root])
    size = sum(len(text.encode()) for text in all_files.values())
    monkeypatch.setattr(share, "MOST_BYTES", size * 2 // 3)
    fewer = share.rendered([root])
    assert 1 < len(fewer) < len(all_files)
    assert sum(len(text.encode()) for text in fewer.values()) <= size * 2 // 3


def test_the_committed_runs_make_a_small_site():
    files = share.rendered([COMMITTED_RUNS])
    assert sum(len(text.encode()) for text in files.values()) <= 10_000_000
    assert len(files) > 100
    titles = re.findall(r'<th scope="row">([^<]+)<small>', files["index.html"])
    assert len(titles) == 5
    assert "○ A gain, no control" in files["index.html"]  # a gain that nothing tells from tuning
    assert all(f"<option>{title}</option>" in files["index.html"] for title in titles[:4])


def test_the_command_writes_all_or_nothing(root, tmp_path, capsys):
    out = tmp_path / "site"
    assert main(["share", "--out", str(out)]) == 2
    assert "there is nothing to share" in capsys.readouterr().err
    assert not out.exists()
    make_run(root, n_items=40)
    assert main(["share", "--out", str(out)]) == 0  # one run: a scorecard without flips
    assert "no flips to show" in (out / "index.html").read_text()
    pair(root)
    assert main(["share", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split()[-1] == str(out / "index.html")
    assert any((out / "items").iterdir())
    before = contents(out)
    (out / "notes.txt").write_text("mine")
    assert main(["share", "--out", str(out)]) == 2
    assert "'notes.txt' was added" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
