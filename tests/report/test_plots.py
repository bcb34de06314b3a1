"""Labels beside charts: whole, in lines that fit, and inert."""

from hypothesis import given
from hypothesis import strategies as st

from bidir_core.report import plots


@given(st.text(st.sampled_from("ab ,:<…"), max_size=150))
def test_lines_fit_and_hold_the_whole_label_or_say_that_they_do_not(text):
    lines = plots.wrapped(text)
    assert 1 <= len(lines) <= plots.LABEL_LINES
    assert all(len(line) <= plots.LABEL_WIDTH for line in lines)
    if "…" not in "".join(lines):
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
