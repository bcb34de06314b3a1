"""``generate``: continue a prompt under several regimes, side by side."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from bidir_core.common.errors import UserError
from bidir_core.common.files import visible
from bidir_core.common.formatting import table
from bidir_core.regimes import parse_regime

if TYPE_CHECKING:
    from bidir_core.explain.generate import Candidate, Generation
    from bidir_core.models.probe import ProbeReport

DEFAULT_REGIMES = ("causal", "bidirectional")


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="an embedded name, a hub id or a folder")
    parser.add_argument("--prompt", required=True, help="the text to go on from; - reads it")
    parser.add_argument(
        "--regime",
        action="append",
        metavar="R",
        help="how the prompt is read; give it several times to compare "
        f"(default: {' and '.join(DEFAULT_REGIMES)})",
    )
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (the default)"
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--chat-template", action="store_true", help="wrap the prompt as a user's turn"
    )
    parser.add_argument("--bos", default="auto", choices=("auto", "add", "none"))
    parser.add_argument("--checkpoint", help="a fine-tuned checkpoint of the model, or its run")
    parser.add_argument("--revision", help="the hub revision of the model")
    for flag in ("dtype", "device", "attn"):
        parser.add_argument(f"--{flag}", default="auto")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(parsed: argparse.Namespace) -> int:
    from bidir_core.explain.generate import Sampling, encode_prompt, generate, to_json

    sampling = Sampling(parsed.max_new_tokens, parsed.temperature, parsed.top_p, parsed.seed)
    regimes = list(dict.fromkeys(map(parse_regime, parsed.regime or DEFAULT_REGIMES)))
    text = sys.stdin.read() if parsed.prompt == "-" else parsed.prompt
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("--prompt is not UTF-8 text; give it as UTF-8") from None
    if not text:
        raise UserError("--prompt is empty; write some text to go on from")
    from bidir_core.evaluate.evaluate import regime_warning
    from bidir_core.models import loading
    from bidir_core.models.probe import Prober

    plan = loading.preflight(**loading.asked_by(parsed))
    for regime in regimes:
        regime.check_layers(plan.n_layers)
    loaded = loading.load_weights(plan)
    prompt = encode_prompt(loaded, text, bos=parsed.bos, chat_template=parsed.chat_template)
    for regime in regimes:
        if warning := regime_warning(loaded.training_record, regime):
            print(visible(warning), file=sys.stderr)
    prober = Prober(loaded)
    probes = [prober.require(regime) for regime in regimes]
    generations = [generate(loaded, prompt.ids, regime, sampling) for regime in regimes]
    if parsed.json:
        answer = to_json(loaded, prompt, sampling, generations, probes)
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        print(as_text(generations, probes, len(prompt.ids)))
    return 0


def as_text(outputs: Sequence[Generation], probes: Sequence[ProbeReport], n_prompt: int) -> str:
    """What was probed, then the next-token distributions beside each other, then the continuations."""
    n_checks = len(probes[0].checks)
    regimes = ", ".join(probe.regime for probe in probes)
    lines = [f"mask probe: {n_checks} checks passed under {regimes}"]
    lines += [f"next token, behind a prompt of {n_prompt} tokens", ""]
    columns = [[_likely(token) for token in output.steps[0].top] for output in outputs]
    titles = [str(output.regime)[:32] for output in outputs]
    lines.append(table(titles, list(zip_longest(*columns, fillvalue="")), left=len(titles)))
    for output in outputs:
        ended = ", then the end of the text" if output.stopped == "end of text" else ""
        title = f"--- {output.regime} ({len(output.steps)} tokens{ended})"
        lines += ["", title, printable(output.text)]
    return "\n".join(lines)


def _likely(token: Candidate) -> str:
    return f"{100 * math.exp(token.logprob):6.2f} %  {printable(repr(token.text))[:22]}"


def printable(text: str) -> str:
    """Text of a model for a terminal: what could steer the terminal is spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)
