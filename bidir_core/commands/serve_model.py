"""``serve-model``: a model behind standard input and output, for the app."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from typing import Any

from bidir_core.common.errors import UserError
from bidir_core.jobs.playground_server import IDLE_SECONDS, Inbox, serve


def fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="an embedded name, a hub id or a folder")
    parser.add_argument("--checkpoint", help="a fine-tuned checkpoint of the model, or its run")
    for flag in ("dtype", "device", "attn"):
        parser.add_argument(f"--{flag}", default="auto")
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=IDLE_SECONDS,
        metavar="S",
        help=f"end after this long without a request (default: {IDLE_SECONDS:.0f})",
    )


def run(parsed: argparse.Namespace) -> int:
    """Load the model, then answer until there is nothing more to answer."""
    # Whatever a library prints goes to the log: standard output is the protocol's alone.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    writing = threading.Lock()

    def say(event: str, **values: Any) -> None:
        with writing:
            out.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
            out.flush()

    def refuse(name: str) -> None:
        say("error", id=name, message="too many requests are waiting; try again later")

    inbox = Inbox(sys.stdin, lambda: os._exit(0), refuse)
    say("loading")
    try:
        from bidir_core.models import loading

        loaded = loading.load(**loading.asked_by(parsed))
    except UserError as error:
        say("failed", message=str(error))
        return 2
    say(
        "ready",
        n_layers=loaded.n_layers,
        max_length=loaded.max_length,
        dtype=loaded.dtype,
        device=str(loaded.device),
        chat_template=bool(loaded.tokenizer.chat_template),
        trained_regime=(loaded.training_record or {}).get("regime"),
    )
    serve(loaded, inbox, say, parsed.idle_seconds)
    return 0
