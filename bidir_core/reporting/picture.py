"""The report's main figure as a PNG, drawn here: no browser is needed, and it is dark on white."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bidir_core.errors import UserError

if TYPE_CHECKING:
    from bidir_core.report import Report

DPI = 200


def main_figure(report: Report) -> bytes:
    """Paired differences by task or, where nothing differs from anything, the stages' accuracies.

    Raises UserError without matplotlib, or if there is nothing to draw.
    """
    from bidir_core.paper.drawing import style
    from bidir_core.paper.figures import forest, ladder
    from bidir_core.paper.quantities import Quantities

    quantities = Quantities(report.numbers)
    with style():
        drawn = forest(quantities) or ladder(quantities)
        if drawn is None:
            raise UserError("these runs have no accuracies to draw")
        out = io.BytesIO()
        drawn.figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
