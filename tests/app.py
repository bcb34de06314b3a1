"""The app without a browser: open a page, read its text, make a pair of runs to show."""

import functools
import re
import time
from dataclasses import replace
from pathlib import Path

from streamlit.components.v2 import manifest_scanner as scanner
from streamlit.testing.v1 import AppTest

from bidir_core import jobs
from bidir_core.jobs import Job
from bidir_core.runs.run import Run
from tests.factory import make_run

ROOT = Path(__file__).resolve().parent.parent
STAGE2 = "stage2_prefill_bidir_eval"

# Looking through the installed packages takes longer than a page does: once is enough.
scanner.scan_component_manifests = functools.cache(scanner.scan_component_manifests)


def open_page(page: str = "", **query: str) -> AppTest:
    """The app at a page (the Overview by default), run once and without a traceback."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
    if page:
        app.switch_page(page)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def words(app: AppTest) -> str:
    """All text on the page, markup removed."""
    parts = [block.proto.body for block in app.get("html")]
    parts += [block.value for block in [*app.title, *app.subheader, *app.code, *app.text]]
    return re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", " ".join(parts)).replace("&#x27;", "'")


def pair(root: Path, **options) -> tuple[Run, Run]:
    common = {"n_items": 40} | options
    return (
        make_run(root, accuracy=0.7, **common),
        make_run(root, STAGE2, regime="bidirectional", accuracy=0.4, seed=1, **common),
    )


def fake_job(root: Path, words: tuple[str, ...], *, number: int = 1, **values) -> Job:
    """A job's file, as if it had been started."""
    folder = root / ".jobs"
    folder.mkdir(parents=True, exist_ok=True)
    made = Job(
        id=f"20260101-00000{number}-abcdef",
        words=words,
        device="cpu",
        created=time.time(),
        root=str(folder),
        title=values.pop("title", "Stage 2 · bidirectional"),
    )
    job = replace(made, **values)
    jobs.save(job)
    return job
