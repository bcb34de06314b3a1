"""Pictures of every page, light and dark, at two widths: ``python -m tests.e2e.screenshots OUT``.

Without ``--runs DIR`` it seeds run folders of its own. With ``--film`` it makes the README's pictures instead:
``OUT/overview.png`` and ``OUT/flip.gif``, the Overview's item while its dials are moved:
``python -m tests.e2e.screenshots docs --film --runs EMPTY_FOLDER``.
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.driving import HEADINGS
from tests.e2e.seed import seed
from tests.e2e.server import IDLE, chromium, serve

PAGES = {page or "overview": (page, {}) for page in HEADINGS} | {
    "overview-500": ("", {"items": "500"}),
    "item-first": ("item", {"flip": "broken"}),
    "item-missing": ("item", {"item": "piqa/999999"}),
    "masks-observed": ("masks", {"show": "observed"}),
    "lab-accuracy": ("lab", {"show": "value", "point": "bidirectional_sink-1"}),
    "launch-sweep": ("launch", {"stage": "lab-layers"}),
    "launch-wrong": ("launch", {"stage": "lab-sink", "f.sweep": "sink=one", "f.limit": "few"}),
    "report-sections": ("report", {"sections": "answers~per_task"}),
    "help": ("", {}),
    "not-found": ("flips", {"a": "stage1_vanilla_eval/none"}),
}

# What is done to the Overview's item for its film: a control, its value, and how long it is shown in ms.
FILM = [("strength", 10, 1600), ("strength", 7, 250), ("strength", 4, 250), ("strength", 0, 1600)]
FILM += [("strength", 4, 250), ("strength", 10, 900), ("sink", 1, 1800), ("sink", 0, 900)]
FILM += [("layers", 1, 250), ("layers", 2, 250), ("layers", 3, 1800)]
_MOVE = """([name, value]) => {
    const input = document.querySelector(`.b-hero input[name=${name}]`);
    if (input.type === 'checkbox') input.checked = Boolean(value); else input.value = value;
    for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind));
}"""


def film(page: Any, out: Path) -> None:
    """An animated picture of the page's item."""
    hero, frames = page.locator(".b-hero"), []
    hero.locator(".choice").first.wait_for()
    for name, value, _ in FILM:
        page.evaluate(_MOVE, [name, value])
        page.wait_for_timeout(150)
        frames.append(Image.open(io.BytesIO(hero.screenshot())).convert("RGB"))
    width, height = (max(frame.size[side] for frame in frames) for side in (0, 1))
    whole = [Image.new("RGB", (width, height), frame.getpixel((0, 0))) for frame in frames]
    for page_of_its_size, frame in zip(whole, frames, strict=True):
        page_of_its_size.paste(frame)
    first, *rest = (frame.quantize(64) for frame in whole)
    shown = {"duration": [ms for _, _, ms in FILM], "loop": 0, "optimize": True}
    first.save(out, save_all=True, append_images=rest, **shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, help="a runs folder instead of seeded ones")
    parser.add_argument("--only", nargs="*", choices=PAGES, help="these pictures only")
    parser.add_argument("--widths", nargs="*", type=int, default=[1280, 1920])
    parser.add_argument("--schemes", nargs="*", default=["light", "dark"])
    parser.add_argument("--film", action="store_true", help="the README's pictures only")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = options.runs or Path(folder)
        if options.runs is None:
            seed(runs)
        with serve(runs) as server, chromium() as browser:
            if options.film:
                page = browser.new_page(viewport={"width": 1180, "height": 1000})
                page.goto(server.url())
                film(page, options.out / "flip.gif")
                page.set_viewport_size({"width": 1440, "height": 900})
                page.goto(server.url())
                page.locator(".b-hero .choice").first.wait_for()
                page.wait_for_timeout(2000)
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(64)
                picture.save(options.out / "overview.png", optimize=True)
                return
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
