"""Texts of data sets and models that try to do something: nothing happens, and all is readable."""

import pytest

from tests.e2e.driving import HEADINGS, go, main_text, visit
from tests.e2e.seed import HOSTILE

pytest.importorskip("playwright")


def test_hostile_texts_fetch_nothing(server, runs, tab):
    pair = {"a": runs["hostile1"].id, "b": runs["hostile2"].id}
    go(tab, server.url("item", **pair, item="hostile/0"), "hostile/0")
    for page in HEADINGS:
        if page != "item":
            visit(tab, server.url(page, **pair, item="hostile/1"), HEADINGS[page])
    for number in range(5):
        visit(tab, server.url("item", **pair, item=f"hostile/{number}"), f"hostile/{number}")
        text = main_text(tab)
        assert "right answer" in text
        if number < len(HOSTILE):  # the markup is there to be read, invisible characters as codes
            words = "".join(HOSTILE[number].split())
            for sign, code in (
                ("\u202e", "‹U+202E›"),
                ("\u202c", "‹U+202C›"),
                ("\u200b", "‹U+200B›"),
            ):
                words = words.replace(sign, code)
            assert words in "".join(text.split()).replace("prefixends·2tokens", "")
    assert "tokens not shown" in text  # the item of 100,000 characters
    assert not tab.foreign()
    assert tab.page.evaluate("window.hacked") is None
    assert not [e for e in tab.unexpected_errors() if "evil" in e]
    for tag in ("iframe", "form", "script", "link", "img[src^=http]", "a[href*=evil]"):
        assert tab.page.locator(f"[data-testid=stMain] {tag}").count() == 0


def test_hostile_ids_in_the_url(server, runs, tab):
    evil = "![x](http://evil.test/1.png)<img src=http://evil.test/2.png>"
    go(tab, server.url("flips", a=evil, item=evil, q=evil, task=evil, regime=evil))
    for page in HEADINGS:
        visit(tab, server.url(page, a=evil, item=evil, q=evil, task=evil, regime=evil))
    tab.page.wait_for_timeout(300)
    assert not tab.foreign()
