"""``python -m bidir_core lab``: what it takes, and what it prints."""

from __future__ import annotations

import argparse

from bidir_core.cli import add_arguments, add_resume, given_in, require_model
from bidir_core.explain.sweep_points import ORDER_PRESET_TASKS, LabConfig

EXAMPLES = """\
sweeps (quote them: * and | mean something to the shell):
  --sweep sink=0,1,2,4,8                 the first K prompt tokens stay causal
  --sweep lambda=0.001,0.01,0.1,0.3      strength of looking ahead
  --sweep layers=windows:5               bidirectional in five layers only, every window of five
  --sweep layers=windows:1,5,10          several widths
  --sweep layers=prefixes                layers 0-0, 0-1, 0-2, ..; suffixes: .., the last alone
  --sweep layers=0-4,10-29               ranges of one's own
  --sweep 'sink=0,1*lambda=0.01,0.1,1'   a product: every combination
  --sweep 'tail=1,2|self=0|rows=0-0'     one after the other; --sweep may also be repeated
  --preset law --limit 100               from which layer on may the prompt look ahead?
  --preset order --limit 100             does it matter whether passage or question comes first?

causal and bidirectional are always among the points; a regime that comes twice runs once.
"""


def fill(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--sweep",
        action="append",
        metavar="SPEC",
        default=argparse.SUPPRESS,
        help="what to vary, e.g. sink=0,1,2; may be repeated (see below)",
    )
    add_arguments(parser, LabConfig)
    add_resume(parser)


def run(parsed: argparse.Namespace) -> int:
    given = given_in(parsed, "resume")
    if "sweep" in given:
        given["sweep"] = tuple(given["sweep"])
    if given.get("preset") == "order" and parsed.resume is None:
        given.setdefault("tasks", ORDER_PRESET_TASKS)
    if parsed.resume is None:
        require_model(given)
    config = LabConfig(**given) if parsed.resume is None else None
    from bidir_core.explain.sweep import resume_lab, run_lab

    if config is None:
        print(resume_lab(parsed.resume, given, runs_dir=given.get("runs_dir")))
    else:
        print(run_lab(config))
    return 0
