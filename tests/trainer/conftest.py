"""What the command line prints, and a real browser for the tests of pages."""

import shutil

import pytest

from dfpo.__main__ import main

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, or that of playwright; skips, with the reason, without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as start:
        try:
            # Root, as in containers, has no sandbox; what is opened is made here.
            opened = start.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser starts here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def said(monkeypatch, capsys):
    """What the command line prints on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        try:
            status = main(list(words))
        except SystemExit as end:
            status = end.code
        assert status == 0
        return capsys.readouterr().out

    return run
