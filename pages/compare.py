"""Compare: the paired tests of a pair, task by task, and where in the data the difference sits."""

import streamlit as st

from bidir_core.analyse.stats import MIN_ITEMS
from bidir_core.common.errors import UserError
from bidir_ui import shell
from bidir_ui.compare import compare_view
from bidir_ui.kit import widgets
from bidir_ui.reading import analysis, pair

page = shell.start("compare")

with shell.guard():
    pair.line(page.pair)
    a, b, metric = shell.chosen_pair(page)
    try:
        result = analysis.compare(a, b, metric, intersect=analysis.intersecting())
    except UserError as error:
        compare_view.show_mismatches(a, b)
        analysis.offer_intersection(error)
        st.stop()
    analysis.remarks(a, b)
    compare_view.verdict(result)
    compare_view.fuller(page.runs, a, b)
    compare_view.forest(result, a, b)
    compare_view.task_table(result, a, b)
    compare_view.retention(result, page.runs, a, b, metric)

    widgets.heading("Right and wrong, task by task")
    widgets.note("Rows: baseline. Columns: candidate. Each number opens its items.")
    compare_view.two_by_two(result, a, b)

    widgets.heading("Where the difference sits")
    widgets.note(
        "All tasks together, 95 % intervals. With so many slices some differ by chance: take them as "
        f"hints. Slices under {MIN_ITEMS} items are left out."
    )
    frame = analysis.flips(a, b, metric)
    compare_view.slice_charts(frame, key=f"{a.id}-{b.id}-{metric}")

    compare_view.show(page.runs, a.model)
