"""The commands of :mod:`bidir_core.cli`, one a module: ``fill(parser)`` and ``run(parsed) -> int``."""
