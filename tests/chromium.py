"""A real Chromium through Playwright, and what a page in it complains of."""

import shutil
from contextlib import contextmanager

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
]

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium (apt-get install chromium)")


@contextmanager
def chromium():
    """A headless browser; only one at a time in a process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        yield browser
        browser.close()


def complaints(page, own=("file:", "data:", "about:", "blob:"), kinds=("error", "warning", "assert")):
    """A list to which a page adds what its console says, exceptions, and requests to anywhere but its own addresses."""
    found = []

    def said(message):
        if message.type in kinds:
            found.append(f"{message.text} {message.location['url']}")

    page.on("console", said)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(own) else found.append(request.url))
    return found
