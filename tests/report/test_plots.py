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


def test_a_label_that_is_too_long_keeps_its_end():
    lines = plots.wrapped("3B (" + "method lora, lr 0.001, " * 9 + "data x), bidirectional:sink=1")
    assert lines[0].startswith("3B (method lora")
    assert lines[2].endswith("…")
    assert lines[3].endswith("bidirectional:sink=1")


def test_an_unbroken_long_word_leaves_no_empty_line():
    path = "checkpoints/" + "x" * 60
    assert all(plots.wrapped(path))
    lines = plots.wrapped(f"3B LoRA, {'word ' * 40}, {path}")
    assert len(lines) == 4
    assert lines[-1].startswith("checkpoints/")
