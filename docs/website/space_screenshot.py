"""Makes docs/space.png: `python docs/website/space_screenshot.py RUN PICTURE`, with a finished run of easy_vqa."""

import sys
from pathlib import Path

from hawaii.tests.tiny.pages import ask, browser, served, upload


QUESTIONS = ("what shape is in the image?", "what color is the shape?")


def take_screenshot(run: Path, picture: Path) -> None:
    """Opens the demo of a run, asks about an image of its test split, and saves the page."""
    with browser() as visitors, served(["-m", "hawaii", "demo", str(run / "hub")]) as (url, _):
        with visitors.visit(url) as page:
            page.set_viewport_size({"width": 1180, "height": 800})
            upload(page, run / "data/images/test/3.png")
            page.wait_for_selector("#adapters svg.picture")
            for number, question in enumerate(QUESTIONS):
                ask(page, question)
                page.locator("[data-testid=bot]").nth(number).wait_for()
            page.wait_for_timeout(1000)  # the last words, and the picture's fade
            page.screenshot(path=picture, full_page=True)


if __name__ == "__main__":
    take_screenshot(*map(Path, sys.argv[1:]))
