"""Every page in its states, without a browser; and the rules every page file keeps."""

import ast
import json
from pathlib import Path

import pytest

from bidir_core.analyse.flips import bands, flips, slices
from bidir_core.regimes import parse_regime
from bidir_ui import shell
from bidir_ui.kit import fmt, html
from bidir_ui.masks import masks_view
from tests.app import ROOT, STAGE2, open_page, pair, words
from tests.factory import make_item, make_reference, make_run

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pages").glob("*.py"))
READERS = [f"pages/{page}.py" for page in ("runs", "flips", "item", "compare", "masks")] + [""]


# --- the five states -----------------------------------------------------------------------


def test_a_corrupt_run_takes_no_page_down(root):
    a, b = pair(root)
    make_run(root, STAGE2, n_items=10, regime="bidirectional", state="corrupt")
    (root / STAGE2 / "20260101-000000").mkdir()
    (root / STAGE2 / "20260101-000000" / "config.json").write_text("{")
    (b.path.with_name("20260101-000001")).mkdir()
    (b.path.with_name("20260101-000001") / "config.json").write_text("{}")
    (b.path.with_name("20260101-000001") / "metrics.json").write_text('{"n_items": 1e999}')
    for page in READERS:
        app = open_page(page, a=a.id, b=b.id, item="piqa/3")
        assert "could not be read" not in words(app), page


def test_what_is_unknown_is_not_found_rather_than_a_default(root):
    pair(root)
    for page in set(READERS) - {"pages/masks.py"}:
        text = words(open_page(page, a="stage1_vanilla_eval/19990101-000000"))
        assert "Run not found" in text, page
        assert "stage1_vanilla_eval/19990101-000000" in text
    assert "is not an item id" in words(open_page("pages/item.py", item="nonsense"))


@pytest.mark.parametrize("page", ["pages/flips.py", "pages/compare.py"])
def test_runs_that_do_not_pair_say_why(root, page):
    a = make_run(root, n_items=40)
    b = make_run(
        root, STAGE2, n_items=40, regime="bidirectional", facts={"tokenizer_fingerprint": "x"}
    )
    app = open_page(page, a=a.id, b=b.id)
    assert "different tokenizers" in words(app)


# --- what the pages say ----------------------------------------------------------------------


def test_compare_prefers_the_embedded_model_at_limit_500(root):
    pair(root, model="other/model")
    a, b = pair(root, config={"limit": 500})
    pair(root)  # newer, but whole sets
    make_run(root, STAGE2, n_items=40, regime="bidirectional:sink=1", config={"limit": 500})
    app = open_page("pages/compare.py")
    assert [box.value for box in app.selectbox[:2]] == [a.id, b.id]
    assert "n = 40" in words(app).replace("\xa0", " ")


def test_what_the_overview_answers_is_what_the_other_pages_begin_with(root):
    """The fullest set of items; a pair of fewer, which a link may name, leads to it."""
    fewer, more = pair(root, config={"limit": 500}), pair(root, n_items=60)
    link = "&amp;".join(f"{side}={run.id}" for side, run in zip("ab", more, strict=True))
    assert f"compare?{link}" in " ".join(b.proto.body for b in open_page().get("html"))
    for key in shell.ABOUT_A_PAIR:
        app = open_page(shell.path(key))
        chosen = [app.selectbox(key=f"url:{side}").value for side in "ab"]
        assert chosen == [run.id for run in more], key
        assert "The same comparison" not in words(app)
    app = open_page("pages/compare.py", a=fewer[0].id, b=fewer[1].id)
    assert any("60 items" in b.proto.body and link in b.proto.body for b in app.get("html"))


def test_item_says_why_it_does_not_begin_with_a_pair_that_kept_no_texts(root):
    kept = pair(root)
    fuller = pair(root, n_items=60, texts=False, config={"compact": True}, model="other/model")
    make_run(root, STAGE2, n_items=60, regime="bidirectional:sink=1", model="other/model")
    app = open_page("pages/item.py")
    assert [app.selectbox(key=f"url:{side}").value for side in "ab"] == [run.id for run in kept]
    assert "The Overview's runs of model kept no texts" in words(app)
    assert any(fuller[0].id in block.proto.body for block in app.get("html"))


def test_overview_answers_of_the_best_studied_model_and_offers_what_is_missing(root):
    pair(root, n_items=600, texts=False, model="other/model")
    pair(root, n_items=600, texts=False)
    make_run(root, STAGE2, n_items=600, texts=False, regime="bidirectional:sink=1", accuracy=0.7)
    make_run(root, STAGE2, n_items=600, texts=False, regime="causal:hide=0", accuracy=0.7)
    text = words(open_page()).replace("\xa0", " ")
    assert "SmolLM2 135M loses" in text
    assert "when prompt tokens look ahead" in text
    assert "leaving the first token causal gives back" in text
    assert "Run (time unknown)" in text
    assert "(n = 600)" in text
    assert text.index("SmolLM2 135M") < text.index("model")
    markup = " ".join(block.proto.body for block in open_page().get("html"))
    assert "launch?stage=pipeline&amp;f.model=other/model&amp;size=quick" in markup
    assert "launch?stage=lab-law&amp;f.model=other/model" in markup
    app = open_page()
    app.session_state["words"] = True
    assert "First token hidden (hide=0)" in words(app.run()), "not only on hovering"


def test_the_switch_asks_for_the_first_500(root):
    pair(root, n_items=60, texts=False, config={"limit": 500})
    pair(root, n_items=90, texts=False)
    assert "(n = 90)" in words(open_page()).replace("\xa0", " ")
    app = open_page(items="500")
    assert "(n = 60)" in words(app).replace("\xa0", " ")
    app.toggle[0].set_value(False).run()
    assert "items" not in app.query_params
    assert "(n = 90)" in words(app).replace("\xa0", " ")


def test_a_pair_in_the_url_is_led_to_compare(root):
    a, b = pair(root)
    app = open_page(a=a.id, b=b.id)
    assert "baseline" in words(app)
    assert any(link.proto.label == "Compare this pair" for link in app.get("page_link"))
    assert words(open_page(b="nope")).count("Run not found") == 1


def test_read_only_offers_no_run(root, monkeypatch):
    pair(root)
    monkeypatch.setenv("BIDIR_READ_ONLY", "1")
    text = words(open_page())
    assert "not run yet" in text
    assert " Run " not in text


def test_published_numbers_are_labelled(root):
    pair(root)
    make_reference(root, tasks={"piqa": 0.788, "winogrande": 0.666})
    make_reference(root, STAGE2, tasks={"piqa": 0.534, "winogrande": 0.518}, regime="bidirectional")
    text = words(open_page())
    assert "published, whole sets" in text.replace("\xa0", " ")
    assert "−20.1" in text


def test_item_shows_both_log_likelihoods_and_every_run(root):
    a, b = pair(root)
    third = make_run(root, STAGE2, n_items=40, regime="bidirectional:sink=1", seed=3)
    text = words(open_page("pages/item.py", a=a.id, b=b.id, item="piqa/3"))
    for run in (a, b):
        for value in run.item("piqa", 3)["ll"]:
            assert fmt.number(value) in text
    assert fmt.signed(third.item("piqa", 3)["margin"]) in text
    assert "bidirectional:sink=1" in text


def test_item_of_compact_runs_says_what_is_missing(root):
    a, b = pair(root, texts=False)
    text = words(open_page("pages/item.py", a=a.id, b=b.id, item="piqa/3"))
    assert "The texts are not here" in text
    assert "assets fetch eval-data" in text
    assert fmt.number(a.item("piqa", 3)["ll"][0]) in text  # the numbers are


def test_item_with_an_error_shows_it(root):
    a = make_run(root, n_items=40)
    b = make_run(root, STAGE2, n_items=40, regime="bidirectional", n_errors=3)
    text = words(open_page("pages/item.py", a=a.id, b=b.id, item="hellaswag/0"))
    assert "the log-likelihood of choice 0 is nan" in text


def test_next_and_previous_stay_in_the_filter(root):
    a, b = pair(root, n_items=100)
    app = open_page("pages/item.py", a=a.id, b=b.id, flip="broken", item="")
    seen = []
    while not (button := app.button(key="go-j")).disabled:
        button.click().run()
        seen.append(app.query_params["item"])
        assert not app.exception
        assert "▼ Broken" in words(app)
    assert len(seen) == len(set(seen)) > 3


def test_runs_lists_settings_that_differ_and_no_others(root):
    a, b = pair(root)
    text = words(open_page("pages/runs.py", a=a.id, b=b.id))
    assert "bidirectional" in text
    assert "dtype" not in text.split("What differs")[-1]


def test_both_masks_stand_side_by_side(root):
    app = open_page("pages/masks.py")
    assert len(app.get("plotly_chart")) == 2
    text = words(app)
    assert "causal : 0 of 28 look-ahead cells" in text
    assert "bidirectional : 28 of 28 look-ahead cells" in text
    assert len(open_page("pages/masks.py", view="difference").get("plotly_chart")) == 1


@pytest.mark.parametrize(
    ("text", "chips", "regime"),
    [
        ("bidirectional", ["ahead", "sink"], "bidirectional:sink=1"),
        ("causal", ["sink"], "bidirectional:sink=1"),
        ("causal", ["hide"], "causal:hide=0"),
        ("bidirectional:sink=4,lambda=0.3", ["ahead", "sink"], "bidirectional:sink=4"),
        ("bidirectional:sink=4", ["sink"], "causal"),
    ],
)
def test_chips_make_a_regime_and_keep_what_was_typed(text, chips, regime):
    assert str(masks_view.with_chips(parse_regime(text), chips)) == regime


def test_a_wrong_value_in_the_url_never_raises(root):
    a, b = pair(root)
    strange = {"min": "1e999", "len": "9-", "flip": "nope", "task": "x~y", "items": "9"}
    for page in READERS:
        open_page(page, a=a.id, b=b.id, item="piqa/1", metric="?", **strange)


# --- rules of the house ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_page_files_start_with_the_shell_and_stay_layout(page):
    text = (ROOT / page).read_text()
    tree = ast.parse(text)
    body = [n for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)][1:]
    key = Path(page).stem
    assert ast.unparse(body[0]) == f"page = shell.start('{key}')"
    assert len(text.splitlines()) <= 150
    assert not {"numpy", "torch", "pandas"} & imported(tree)


BANNED = "markdown write caption error info warning success table html latex image exception badge"
SHOWN_BY = [*(ROOT / "pages").glob("*.py"), *(ROOT / "bidir_ui").rglob("*.py"), ROOT / "app.py"]


@pytest.mark.parametrize("path", SHOWN_BY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_markdown_and_no_raw_html(path):
    """Markdown and unescaped HTML fetch what a text tells them to; only html.py writes HTML."""
    if path == ROOT / "bidir_ui" / "kit" / "html.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_banned = node.value.id == "st" and node.attr in [*BANNED.split(), "toast"]
            assert not is_banned, f"{path}: st.{node.attr}"


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


# --- small pieces ------------------------------------------------------------------------------


def test_text_is_inert():
    built = html.el("p", '<img src="http://evil.test">', "\u202ex\u200b", title='"><script>')
    assert "<img" not in built
    assert "<script" not in built
    assert "‹U+202E›" in built
    with pytest.raises(TypeError):
        html.show("<b>plain string</b>")
    with pytest.raises(ValueError):
        html.el("img src=x")


def test_numbers_have_a_real_minus_and_no_negative_zero():
    assert fmt.points(-0.0465) == "−4.7" or fmt.points(-0.0465) == "−4.6"
    assert fmt.points(-0.00001) == "0.0"
    assert fmt.points(0.05) == "+5.0"
    assert fmt.interval(None, 0.1) == "no interval"
    assert fmt.percent(float("nan")) == "–"


def test_slices_add_up(root):
    a, b = pair(root, n_items=300)
    frame = flips(a, b)
    parts = slices(frame["flip"], bands(frame["n_prefix_tokens"]))
    assert sum(part.estimate.n for part in parts) == len(frame)
    assert sum(part.broken for part in parts) == (frame["flip"] == "broken").sum()


def test_a_huge_text_stays_a_small_page(root):
    item = make_item("huge", 0, 1)
    item["contexts"] = ["word " * 40_000]
    item["prefix_token_offsets"] = [[[5 * i, 5 * i + 5] for i in range(40_000)]]
    item["prefix_token_ids"] = [list(range(40_000))]
    item["n_prefix_tokens"] = [40_000]
    common = {"items": [item], "tasks": ["huge"]}
    a = make_run(root, accuracy=1.0, **common)
    b = make_run(root, STAGE2, regime="bidirectional", accuracy=0.0, **common)
    app = open_page("pages/item.py", a=a.id, b=b.id, item="huge/0")
    assert sum(len(block.proto.body) for block in app.get("html")) < 600_000
    assert "tokens not shown" in words(app)
    assert json.dumps(app.query_params["item"])
