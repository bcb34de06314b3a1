"""``weights``: how much of a regime's damage comes from running 8-bit weights as they are."""

from __future__ import annotations

import argparse

from bidir_core.commands.arguments import add_arguments, given_in, require_model
from bidir_core.jobs.weights import WeightsConfig

ABOUT = """\
Four evaluations, one after another, each an ordinary run: the weights dequantised and as they are
in 8 bits, both causal and bidirectional. Printed: the four macro accuracies, the damage with either
kind of weights, and the difference of the two, paired item by item. A finished run of the same
settings is used again and an unfinished one resumed, so the same line goes on after a kill.
"""


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core weights``."""
    parser.epilog = ABOUT
    add_arguments(parser, WeightsConfig)


def run(parsed: argparse.Namespace) -> int:
    """Run what is missing of the four, and print what they show."""
    given = given_in(parsed)
    require_model(given)
    config = WeightsConfig(**given)
    from bidir_core.jobs.weights import effect_text, effects_of, run_four

    runs = run_four(config)
    print(effect_text(config, runs, effects_of(config, runs)))
    return 0
