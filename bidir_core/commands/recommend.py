"""``recommend``: from which layer on may the prompt look ahead? Answered without labels."""

from __future__ import annotations

import argparse

from bidir_core.cli import add_arguments, given_in, require_model
from bidir_core.explain.configs import RecommendConfig
from bidir_core.explain.recommend import recommend


def fill(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, RecommendConfig)


def run(parsed: argparse.Namespace) -> int:
    """Measure, print the curve and the recommendation on stderr and the run folder on stdout."""
    given = given_in(parsed)
    require_model(given)
    print(recommend(RecommendConfig(**given)))
    return 0
