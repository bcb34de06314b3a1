"""``why``: which layers, prompt tokens and how much look-ahead flip one item."""

from __future__ import annotations

import argparse

from bidir_core.commands.arguments import add_arguments
from bidir_core.common.errors import UserError
from bidir_core.explain.why import explain
from bidir_core.explain.why_config import WhyConfig


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core why``."""
    add_arguments(parser, WhyConfig)


def run(parsed: argparse.Namespace) -> int:
    """Explain one item; prints what was found and the run folder."""
    given = {k: v for k, v in vars(parsed).items() if k != "run"}
    for name in ("task", "doc_id"):
        if name not in given:
            raise UserError(f"--{name.replace('_', '-')} is missing; say which item to explain")
    path = explain(WhyConfig(**given))
    print(path)
    return 0
