"""Runs: every run folder, the choice of baseline and candidate, and how two configs differ."""

import hashlib
from functools import partial

import streamlit as st

from bidir_ui import runs_table, runs_tree, shell
from bidir_ui.compare import compare_view
from bidir_ui.kit import fmt, html, url, widgets
from bidir_ui.reading import data, pair

page = shell.start("runs")

with shell.guard():
    pair.line(page.pair)
    if page.pair.unknown or not page.runs:
        pair.explain_if_missing(page.runs, page.pair)
    if not page.runs:
        st.stop()

    left, right = st.columns(2)
    with left:
        search = url.text(
            "Search", name="q", max_chars=400, placeholder="stage, regime, model, name or state"
        )
    with right:
        kinds = ["all", "evaluations", "fine-tunes", "imported", "published"]
        kind = url.choice(st.segmented_control, "Kind", name="kind", options=kinds, default="all")

    def matches(run: data.RunInfo) -> bool:
        of_kind = {
            "all": True,
            "evaluations": run.is_evaluation,
            "fine-tunes": run.is_finetune,
            "imported": run.is_imported,
            "published": run.is_reference,
        }
        # A sweep's row stands for its points; they are on the Lab page.
        if run.is_point or not of_kind[kind]:
            return False
        text = f"{run.id} {run.label} {run.weights} {run.model} {run.state}".casefold()
        return all(word in text for word in search.casefold().split())

    shown = [run for run in page.runs if matches(run)]
    a, b = page.pair.a, page.pair.b
    if not shown:
        widgets.banner("empty", "No run matches", "Clear the search or choose another kind.")
        st.button("Show all runs", key="clear", on_click=lambda: url.put(q="", kind=""))
    else:
        views = {"tree": "By study, arm and seed", "list": "One by one"}
        many = "tree" if len(shown) > runs_tree.MANY and not search else "list"
        with widgets.row():
            view = url.segments("View", name="view", options=views, default=many)
            n_all = sum(not run.is_point for run in page.runs)
            widgets.note(f"{fmt.count(len(shown))} of {fmt.count(n_all)} runs")
            widgets.take_away(partial(runs_table.frame, shown, a, b), "runs.csv", key="runs")
        nodes = runs_tree.tree(shown, a) if view == "tree" else []
        table = runs_table.tree_frame(nodes, a, b) if nodes else runs_table.frame(shown, a, b)
        # The selected positions belong to these rows only, so the rows are in the widget's key.
        drawn = "|".join(table["what"] if nodes else table["run"])
        selected = runs_table.show(table, f"runs-{hashlib.sha1(drawn.encode()).hexdigest()[:12]}")
        if selected.opened is not None:
            run_id = str(table["run"].iloc[selected.opened])
            if not run_id:
                runs_tree.toggle(nodes[selected.opened], nodes)
                st.rerun()
            st.switch_page(shell.path("run"), query_params=url.params(id=run_id))
        runs_table.actions(page.runs, table["run"].iloc[selected.rows].tolist())

    runs_table.watch(page.runs)
    runs_table.problems(page.runs)

    if page.pair.a and page.pair.b:
        widgets.heading("What differs between baseline and candidate")
        changed = runs_table.config_difference(page.pair.a, page.pair.b)
        if changed:
            cells = [(name, widgets.code_text(x), widgets.code_text(y)) for name, x, y in changed]
            head = ("Setting", "Baseline", "Candidate")
            name = compare_view.file_name("settings", page.pair.a.id, page.pair.b.id)
            html.show(widgets.table(head, cells, name=name, left=(1, 2)))
        else:
            widgets.note("Nothing: the two configs are the same.")
