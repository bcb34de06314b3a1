"""``assets fetch`` and ``assets list``."""

from __future__ import annotations

import argparse

from bidir_core.data import assets, fetch
from bidir_core.data.assets import state


def fill(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="action", required=True)
    summary = "Fetch, verify and convert; nothing if ready."
    fetch = actions.add_parser("fetch", help=summary, description=summary)
    fetch.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"if left out, {' and '.join(assets.default_names())}; the others on request only",
    )
    fetch.set_defaults(action=fetch_command)
    summary = "Print name, version, state and folder of each."
    listing = actions.add_parser("list", help=summary, description=summary)
    listing.set_defaults(action=list_command)


def run(parsed: argparse.Namespace) -> int:
    return parsed.action(parsed)


def fetch_command(args: argparse.Namespace) -> int:
    """``assets fetch [NAME..]``: make the named assets, checking every byte.

    Default: all but those that are fetched on request only.
    """
    names = args.names or assets.default_names()
    for name in names:
        assets.find(name)  # refuse a misspelt name before fetching the others
    for name in names:
        print(fetch.ensure(name, thorough=True))
    return 0


def list_command(args: argparse.Namespace) -> int:
    """``assets list``: name, version, state and folder of every asset."""
    rows = [(a.name, a.full_version, state(a.name), str(a.folder)) for a in assets.ASSETS.values()]
    for row in [("name", "version", "state", "folder"), *rows]:
        print("{:<31}{:<10}{:<10}{}".format(*row))
    for asset in assets.ASSETS.values():
        if asset.origin:
            print(f"{asset.name} ({asset.terms}) is {asset.origin}")
    return 0
