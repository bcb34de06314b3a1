"""Inert HTML: the only place where text from runs, models and data sets becomes markup.

``el`` builds elements and escapes every plain string in them; ``show`` takes nothing else than
what ``el`` built. Pages never call ``st.html`` or ``st.markdown`` with text that came from a run:
those fetch remote images and follow links out of it.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import streamlit as st
from markupsafe import Markup

from bidir_core.data.item_texts import visible
from bidir_core.report import rows

_VOID = {"br", "hr", "img", "rect"}
_TAG = re.compile(r"[a-z][a-z0-9]*")


Html = Markup


def esc(text: object) -> Html:
    """Plain text as inert markup."""
    return text if isinstance(text, Html) else Html(html.escape(visible(text)))


def join(*parts: object) -> Html:
    return Html("".join(esc(part) for part in parts if part is not None))


def el(tag: str, *children: object, **attributes: object) -> Html:
    """One element. ``cls`` is the class attribute; None and False attributes are left out."""
    if not _TAG.fullmatch(tag):
        raise ValueError(f"not a tag: {tag!r}")
    if "cls" in attributes:
        attributes["class"] = attributes.pop("cls")
    written = "".join(
        f' {name.replace("_", "-")}="{esc(value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Html(f"<{tag}{written}>" if tag != "rect" else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{join(*children)}</{tag}>")


def div(cls: str, *children: object, **attributes: object) -> Html:
    return el("div", *children, cls=cls, **attributes)


def scrolling(*children: object) -> Html:
    """What may be wider than the page; the keyboard reaches it, so that arrow keys can move it."""
    return div("b-scroll", *children, tabindex="0")


def span(cls: str, *children: object, **attributes: object) -> Html:
    return el("span", *children, cls=cls, **attributes)


def show(markup: Html) -> None:
    """Put markup on the page: built here, or by the core's own reports."""
    if not isinstance(markup, Html):
        raise TypeError("show() takes what el() built, not a plain string")
    st.html(str(markup))


SHEETS = (rows.STYLES, Path(__file__).with_name("style.css"))


SCRIPT = Path(__file__).with_name("tables.js")


def styles() -> None:
    """The style sheets of the app and of the rows that it shares with reports, and the script of tables."""
    st.html(f"<style>{''.join(sheet.read_text(encoding='utf-8') for sheet in SHEETS)}</style>")
    tables = st.components.v2.component("bidir_tables", js=SCRIPT.read_text(encoding="utf-8"))
    with st.sidebar:  # it has nothing to show
        tables(key="tables")
