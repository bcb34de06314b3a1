"""The URL is the truth: what the reader sees is in it, and a copied link shows it again.

A widget made by :func:`bound` takes its value from the URL on every run and writes changes back,
so that links, the back button and other tabs all agree. Ids are read here as they are; whoever
looks one up says "not found" for an unknown one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import streamlit as st

N = TypeVar("N", int, float)
MOST_CHARACTERS = 10_000

# The chosen pair follows the reader from page to page, and whether only shared items count.
KEPT = ("a", "b", "metric", "intersect")


def get(name: str, default: str = "") -> str:
    """A parameter's text, cut off at MOST_CHARACTERS: a link may hold anything."""
    return st.query_params.get(name, default)[:MOST_CHARACTERS]


def get_list(name: str) -> list[str]:
    return [part for part in get(name).split("~") if part]


def put(**values: object) -> None:
    """Write parameters; empty values leave the URL."""
    for name, value in values.items():
        text = "~".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value or "")
        if text:
            if st.query_params.get(name) != text:
                st.query_params[name] = text
        elif name in st.query_params:
            del st.query_params[name]


def params(**values: object) -> dict[str, str]:
    """Query parameters for a link: the chosen pair as it is in this URL, then ``values``."""
    out = {name: get(name) for name in KEPT if get(name)}
    out.update({name: str(value) for name, value in values.items() if value})
    return out


def href(page: str, query: Mapping[str, str]) -> str:
    """A link relative to any page of the app (all pages are one level deep)."""
    return (page or "./") + ("?" + urlencode(query, quote_via=quote, safe="/:~,=") if query else "")


def absolute(page: str, query: Mapping[str, str]) -> str:
    """A link to copy, with this server's own address."""
    base = str(st.context.url or "http://localhost:8501/").split("?")[0]
    root = base if base.endswith("/") else base.rsplit("/", 1)[0] + "/"
    return root + href(page, query).removeprefix("./")


def bound(
    widget: Callable[..., Any],
    label: str,
    *,
    name: str,
    read: Callable[[str], Any],
    write: Callable[[Any], object] = lambda value: value,
    **options: Any,
) -> Any:
    """A widget whose value lives in the URL parameter ``name``.

    ``read`` turns the URL's text into the widget's value (and decides what an absent or unknown
    text means); ``write`` turns the value into text, empty for the default.
    """
    key = f"url:{name}"
    st.session_state[key] = read(get(name)[: options.get("max_chars")])

    def changed() -> None:
        put(**{name: write(st.session_state[key])})

    return widget(label, key=key, on_change=changed, **options)


def choice(
    widget: Callable[..., Any],
    label: str,
    *,
    name: str,
    options: Sequence[str] | Mapping[str, str],
    default: str,
    **more: Any,
) -> str:
    """A :func:`bound` widget with one of ``options`` chosen; a mapping also says how they are
    shown. The default is not written into the URL, and stands for whatever is no option."""
    if isinstance(options, Mapping):
        more = {"format_func": options.get} | more
    chosen = bound(
        widget,
        label,
        name=name,
        options=list(options),
        read=lambda text: text if text in options else default,
        write=lambda value: "" if value in (None, default) else value,
        **more,
    )
    return chosen or default


def segments(
    label: str, *, name: str, options: Sequence[str] | Mapping[str, str], default: str
) -> str:
    """A :func:`choice` as buttons in a row, which only a screen reader names."""
    return choice(
        st.segmented_control,
        label,
        name=name,
        options=options,
        default=default,
        required=True,
        label_visibility="collapsed",
    )


def text(label: str, *, name: str, default: str = "", **more: Any) -> str:
    """A :func:`bound` line of text; the default is not written into the URL."""
    return bound(
        st.text_input,
        label,
        name=name,
        read=lambda value: value or default,
        write=lambda value: "" if value == default else value,
        **more,
    )


def read_number(text: str, default: N, least: N, most: N) -> N:
    """The number in a URL's text, of the default's kind; the default for anything else."""
    try:
        value = type(default)(text)
    except ValueError:
        return default
    return value if least <= value <= most else default


def number(label: str, *, name: str, default: N, least: N, most: N, **more: Any) -> N:
    """A :func:`bound` number, whole or not as the default is."""

    def write(value: N | None) -> str:
        if value is None or value == default:
            return ""
        return f"{value:g}" if isinstance(value, float) else str(value)

    return bound(
        st.number_input,
        label,
        name=name,
        min_value=least,
        max_value=most,
        read=lambda text: read_number(text, default, least, most),
        write=write,
        **more,
    )
