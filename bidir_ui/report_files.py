"""The Report page's files. Each is made when it is asked for, and not before."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import streamlit as st

from bidir_core.reporting import html_page, picture
from bidir_core.reporting.markdown import Table
from bidir_ui import widgets
from bidir_ui.report_view import Made
from bidir_ui.shell import guard


def downloads(made: Made) -> None:
    """Files that are made when they are asked for; their names carry run ids."""
    report, only = made.report, made.only
    tables = report.chosen_tables(only)
    files: list[tuple[str, str, str, Callable[[], bytes], bool]] = [
        ("HTML", ".html", "text/html", lambda: html_page.page(report, only).encode(), True),
        ("Markdown", ".md", "text/markdown", lambda: report.markdown(only).encode(), True),
        ("PNG", ".png", "image/png", lambda: picture.main_figure(report), made.has_charts),
        ("CSV tables", "_tables.zip", "application/zip", lambda: zipped(tables), bool(tables)),
    ]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for label, ending, mime, make, any_ in files:
            st.download_button(
                label, make, file_name=report.stem + ending, mime=mime, on_click="ignore",
                key=f"report{ending}", icon=":material/download:", disabled=not any_,
            )  # fmt: skip
        with st.popover("Paper", icon=":material/folder_zip:"):
            paper(made)
        with st.popover("Command line", type="tertiary", icon=":material/terminal:"):
            widgets.note("The same report in a terminal:")
            widgets.command(html_page.command(report, only))
            widgets.note("With --paper DIR instead of --out it makes the folder for a paper.")
        widgets.note(
            "HTML: one file with interactive charts and the flips, to mail; it opens offline. PNG: "
            "the paired differences by task; each chart's own button saves that chart."
        )


def zipped(tables: dict[str, Table]) -> bytes:
    """Every table as CSV, in one archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, table in tables.items():
            archive.writestr(f"{key}.csv", table.csv())
    return out.getvalue()


@st.fragment  # the page is not drawn again
def paper(made: Made) -> None:
    """The folder for a paper as one ZIP, made when it is asked for."""
    widgets.note(
        "A folder for a paper, of all sections: figures (PDF, SVG), LaTeX tables, a methods text, "
        "references, and a ledger in which every number leads to its runs."
    )
    name = made.report.stem.replace("report_", "paper_", 1)
    if st.button("Make the ZIP", key="report-paper", icon=":material/build:"):
        with guard():
            st.session_state["report-paper-zip"] = made.key, _paper_zip(made, name)
    key, archive = st.session_state.get("report-paper-zip", ("", b""))
    if key == made.key:
        st.download_button(
            f"Download ({len(archive) / 1e6:.1f} MB)", archive, file_name=f"{name}.zip",
            mime="application/zip", on_click="ignore", key="report-paper-file", type="primary",
            icon=":material/download:",
        )  # fmt: skip


def _paper_zip(made: Made, name: str) -> bytes:
    from bidir_core.paper.write import zip_paper  # what draws loads slowly

    bar = st.progress(0.0, "Starting")
    archive = zip_paper(
        made.report, name, lambda share, what: bar.progress(share, what.capitalize()),
        command=html_page.command(made.report, out="DIR", flag="--paper"),
    )  # fmt: skip
    bar.empty()
    return archive
