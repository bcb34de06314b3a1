"""Pictures of every page, light and dark, at two widths: ``python -m tests.e2e.screenshots OUT``.

Without ``--runs DIR`` it seeds run folders of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.e2e.seed import seed
from tests.e2e.server import IDLE, chromium, serve

PAGES = {
    "overview": ("", {}),
    "overview-500": ("", {"items": "500"}),
    "runs": ("runs", {}),
    "compare": ("compare", {}),
    "flips": ("flips", {}),
    "item": ("item", {"item": "piqa/3"}),
    "item-first": ("item", {"flip": "broken"}),
    "item-missing": ("item", {"item": "piqa/999999"}),
    "masks": ("masks", {}),
    "masks-observed": ("masks", {"show": "observed"}),
    "lab": ("lab", {}),
    "lab-accuracy": ("lab", {"show": "value", "point": "bidirectional_sink-1"}),
    "playground": ("playground", {}),
    "launch": ("launch", {}),
    "launch-sweep": ("launch", {"stage": "lab-layers"}),
    "launch-wrong": ("launch", {"stage": "lab-sink", "f.sweep": "sink=one", "f.limit": "few"}),
    "launch-probe": ("launch", {"stage": "probe"}),
    "report": ("report", {}),
    "report-sections": ("report", {"sections": "answers~per_task"}),
    "help": ("", {}),
    "not-found": ("flips", {"a": "stage1_vanilla_eval/none"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, help="a runs folder instead of seeded ones")
    parser.add_argument("--only", nargs="*", choices=PAGES, help="these pictures only")
    parser.add_argument("--widths", nargs="*", type=int, default=[1280, 1920])
    parser.add_argument("--schemes", nargs="*", default=["light", "dark"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = options.runs or Path(folder)
        if options.runs is None:
            seed(runs)
        with serve(runs) as server, chromium() as browser:
            for width in options.widths:
                for scheme in options.schemes:
                    page = browser.new_page(
                        viewport={"width": width, "height": 1000}, color_scheme=scheme
                    )
                    for name in options.only or PAGES:
                        path, query = PAGES[name]
                        page.goto(server.url(path, **query))
                        page.wait_for_selector(IDLE)
                        if name == "help":
                            page.locator(".st-key-help button").click()
                        page.wait_for_timeout(1500)  # charts draw after the script has ended
                        height = page.evaluate(
                            "document.querySelector('.stMainBlockContainer')?.scrollHeight ?? 1000"
                        )
                        page.set_viewport_size({"width": width, "height": max(1000, height + 20)})
                        page.wait_for_timeout(400)
                        page.screenshot(path=options.out / f"{name}-{width}-{scheme}.png")
                        page.set_viewport_size({"width": width, "height": 1000})
                    page.close()


if __name__ == "__main__":
    main()
