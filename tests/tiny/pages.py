"""Pages that a process serves, and visitors who open them in a headless browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync
""".split()
TIMEOUT = 120  # seconds for what takes one or two, but longer on a busy machine


@contextmanager
def served(command: Sequence[str], **options) -> Iterator[tuple[str, subprocess.Popen]]:
    """Starts a command that serves a page. Gives its address and process, and ends it as Ctrl-C would."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    with subprocess.Popen([sys.executable, *command], **options) as process:
        assert process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if address := re.search(r" is at (http://\S+) ", line):
                    break
            else:
                raise AssertionError("".join(lines))
            yield address[1], process
        finally:
            process.terminate()  # handled as Ctrl-C is


class Visitors:
    """A browser. Each visitor has cookies and a session of their own; `requests` has the addresses of all requests."""

    def __init__(self, browser):
        self.browser, self.requests = browser, []

    @contextmanager
    def visit(self, url: str):
        context = self.browser.new_context()
        context.set_default_timeout(TIMEOUT * 1000)
        context.on("request", lambda request: self.requests.append(request.url))
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#question textarea")
        yield page
        context.close()

    def foreign_hosts(self) -> set:
        """Hosts other than this machine that a page asked for something."""
        addresses = map(urlsplit, self.requests)
        return {url.hostname for url in addresses if url.scheme not in ("data", "blob")} - {"127.0.0.1"}


@contextmanager
def browser() -> Iterator[Visitors]:
    from playwright.sync_api import sync_playwright

    assert BROWSER, "There is no Chromium; `make chromium` installs it."
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield Visitors(chromium)
        chromium.close()


def upload(page, picture: Path) -> None:
    """Replaces the picture."""
    if page.locator("#picture button[aria-label='Remove Image']").count():
        page.click("#picture button[aria-label='Remove Image']")
    page.set_input_files("#picture input[type=file]", picture)


def ask(page, question: str) -> None:
    """Asks as soon as the page accepts a question: not before the last answer has ended."""
    messages = page.locator("[data-testid=user]")
    before = messages.count()
    page.fill("#question textarea", question)
    for _ in range(TIMEOUT * 5):
        page.press("#question textarea", "Enter")
        page.wait_for_timeout(200)
        if messages.count() > before:
            return
    raise AssertionError(f"The page does not accept the question: {page.locator('#error').inner_text()}")
