"""``python -m bidir_core <command>``."""

from bidir_core.cli import main

raise SystemExit(main())
