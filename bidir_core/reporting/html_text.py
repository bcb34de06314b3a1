"""The report's own Markdown as inert HTML.

Only what a report writes is understood: headings, lists, emphasis, code spans and escapes. Links,
images and raw HTML are not, so text from outside stays text even where it was not escaped.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

from bidir_core.item_texts import visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

UNDERSTOOD = ["heading", "list", "emphasis", "backticks", "escape", "entity"]


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("zero").enable(UNDERSTOOD)


def paragraphs(markdown: str) -> Markup:
    """Paragraphs, lists and headings of a section's text."""
    return Markup(_parser().render(visible(markdown)))


def line(markdown: str) -> Markup:
    """One line, such as a title, without a paragraph around it."""
    return Markup(_parser().renderInline(visible(markdown)))
