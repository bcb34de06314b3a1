"""``probe``: does a model attend as a regime says?"""

from __future__ import annotations

import argparse
import json

from bidir_core.cli import add_arguments, given_in, require_model
from bidir_core.evaluate.config import ProbeConfig


def fill(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser, ProbeConfig)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(parsed: argparse.Namespace) -> int:
    given = given_in(parsed, "json")
    require_model(given)
    config = ProbeConfig(**given)
    from bidir_core.models import loading
    from bidir_core.models.probe import run_probe
    from bidir_core.regimes import parse_regime

    regime = parse_regime(config.regime)
    loaded = loading.load(**loading.asked_by(config, regime=regime))
    report = run_probe(loaded, regime)
    if parsed.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        for check in report.checks:
            print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
        print(f"{'passed' if report.passed else 'FAILED'}: {config.model} under {regime}")
    return 0 if report.passed else 1
