"""``why``: which layers, prompt tokens and how much look-ahead flip one item."""

from __future__ import annotations

import argparse

from bidir_core.cli import add_arguments, given_in
from bidir_core.common.errors import UserError
from bidir_core.explain.configs import WhyConfig


def fill(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, WhyConfig)
    parser.add_argument(
        "--export",
        metavar="FILE",
        help="instead of explaining it, score the item at every strength of looking ahead, with and "
        "without its first token and first layers causal, and add it to this JSON file",
    )


def run(parsed: argparse.Namespace) -> int:
    """Explain one item; prints what was found and the run folder, or the file it was added to."""
    given = given_in(parsed, "export")
    for name in ("task", "doc_id"):
        if name not in given:
            raise UserError(f"--{name.replace('_', '-')} is missing; say which item to explain")
    config = WhyConfig(**given)
    if parsed.export:
        from bidir_core.explain.why import export

        exported = export(config, parsed.export)
        print(f"{exported['item']}: {parsed.export}")
    else:
        from bidir_core.explain.why import explain

        print(explain(config))
    return 0
