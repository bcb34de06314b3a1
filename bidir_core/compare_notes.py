"""What a reader of a comparison must know beside its numbers."""

from __future__ import annotations

from bidir_core.interop.evidence import unchecked_notes
from bidir_core.pairing import PairedItems
from bidir_core.store import Run


def notes_of(pairs: PairedItems) -> list[str]:
    """Partial runs, items left out, and what the two runs were computed with if that differs."""
    notes = []
    for run in (pairs.run_a, pairs.run_b):
        if run.state != "done":
            notes.append(f"partial: '{run.id}' is {run.state}, not complete")
    if pairs.intersected:
        notes.append(
            f"intersected: only the {pairs.n + pairs.n_errors:,} items that both runs hold; "
            f"{pairs.n_unpaired:,} left out"
        )
    if pairs.n_errors:
        notes.append(f"{pairs.n_errors:,} items left out: one of the runs could not score them")
    a, b = pairs.run_a, pairs.run_b
    for name, setting in (("dtype", "dtype"), ("attention", "attn"), ("weights", "weights")):
        # What was computed with; the setting may say "auto" in both.
        one, other = (run.config.get(name) or run.settings.get(setting) for run in (a, b))
        if name == "attention" and one != other:
            one, other = _attention(a, one), _attention(b, other)
        if one and other and one != other:
            notes.append(f"the runs differ in {name}: {one} and {other}")
    notes += unchecked_notes(a, b)
    if "explore" in (a.settings.get("fold"), b.settings.get("fold")):
        notes.append("explore fold: for choosing recipes; make claims on the confirm fold")
    return notes


def _attention(run: Run, name: str | None) -> str | None:
    """What really computed the run's attention: split is sdpa but for items with a long prefix."""
    reach = run.config.get("split_from_tokens")
    if name != "split" or not isinstance(reach, int):
        return name
    lengths = run.items_table(("n_prefix_tokens",)).column("n_prefix_tokens").to_pylist()
    # All of an item's contexts together: that is what may lie in one packed row.
    longest = max((sum(one) for one in lengths if one), default=reach)
    return "split" if longest >= reach else "sdpa"
