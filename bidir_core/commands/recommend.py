"""``recommend``: from which layer on may the prompt look ahead? Answered without labels."""

from __future__ import annotations

import argparse

from bidir_core.commands.arguments import add_arguments, given_in, require_model
from bidir_core.explain.recommend_config import RecommendConfig


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m bidir_core recommend``."""
    add_arguments(parser, RecommendConfig)


def run(parsed: argparse.Namespace) -> int:
    """Measure, print the curve and the recommendation on stderr and the run folder on stdout."""
    given = given_in(parsed)
    require_model(given)
    config = RecommendConfig(**given)
    from bidir_core.explain.recommend import recommend

    print(recommend(config))
    return 0
