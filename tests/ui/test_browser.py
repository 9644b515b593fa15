"""Every page in a browser: narrow and wide, light and dark, by keyboard, without a word to any other machine.

Set LUTHIER_SCREENSHOTS to a folder to keep what was seen.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")

from playwright import sync_api as playwright

from luthier.ui.shown import PAGES
from luthier.ui.studio import Studio
from tests.ui.listening import Page

CHROMIUM = os.environ.get("LUTHIER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 1000 * float(os.environ.get("LUTHIER_BROWSER_SECONDS", "60"))  # ms
INTERACTIVE_SECONDS = 2.0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs chromium")]


@pytest.fixture(scope="module")
def page(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "runs"
    shutil.copytree(root / "demo", folder / "demo")
    studio = Studio(folder)
    made = Page(studio)
    yield made
    if studio.processes.running("mine"):  # where its test ended early
        studio.processes.stop("mine")
    made.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def tab(browser, page):
    """`tab(path)`: an open page, whose requests and errors are kept and looked at in the end."""
    opened, asked, wrong = [], [], []

    def open_(path, width=1200, dark=False, title="h1"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light",
                                      permissions=["clipboard-read", "clipboard-write"])
        one = context.new_page()
        one.set_default_timeout(WAIT)
        one.on("request", lambda r: asked.append(r.url))
        one.on("pageerror", lambda e: wrong.append(str(e)))
        one.goto(page.url + path)
        if title:
            one.wait_for_selector(title)
        opened.append(context)
        return one

    yield open_
    for context in opened:
        context.close()
    assert not [u for u in asked if not u.startswith((page.url, "data:", "blob:"))], "asked of another machine"
    assert not wrong


def processor_seconds():
    """What this process, in which the page's server runs, and the browser took of the processors so far."""
    me = psutil.Process()
    browser = [p for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE and "chrom" in p.name()]
    times = [p.cpu_times() for p in (me, *browser)]
    return sum(t.user + t.system for t in times)


def kept(one, name):
    folder = os.environ.get("LUTHIER_SCREENSHOTS")
    if folder:
        one.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
@pytest.mark.parametrize(("path", "title"), PAGES)
def test_every_page_is_whole_at_every_width(tab, path, title, width, dark):
    one = tab(path, width, dark)
    assert one.locator("h1").inner_text() == title
    assert one.locator(f'nav a[href="{path}"][aria-current=page]').count() == 1
    one.wait_for_load_state("networkidle")
    assert one.evaluate("document.documentElement.scrollWidth") <= width, "nothing lies beyond the edge"
    back = one.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[back.index("(") + 1:-1].split(",")[:3])) < 200) == dark
    kept(one, f"{title.lower()}-{width}-{'dark' if dark else 'light'}")


def test_pages_can_be_used_soon(tab):
    """After the first visit, whose cache does not help: a clock says so, or the processor time of browser and server together.

    That sum is what a clock would say at most if nothing else ran on the machine.
    """
    def visited(path):
        one = tab("/healthz", title="")
        began, taken = time.monotonic(), processor_seconds()
        one.goto(one.url.removesuffix("/healthz") + path, wait_until="commit")
        one.wait_for_function("document.querySelectorAll('button, input, textarea, .luthier a').length > 5")
        return min(time.monotonic() - began, processor_seconds() - taken)

    for path, _ in PAGES:
        visited(path)
        took = min(visited(path) for _ in range(3))
        print(f"{path}: {took:.2f} s")
        assert took < INTERACTIVE_SECONDS, path


def test_by_keyboard_alone_the_run_is_asked(tab):
    one = tab("/compare?run=demo")
    box = one.get_by_label("Question")
    box.wait_for()
    one.get_by_label("tuned+retrieval").wait_for()
    for _ in range(40):
        one.keyboard.press("Tab")
        if one.evaluate("document.activeElement === document.querySelector('textarea')"):
            break
    assert box.evaluate("e => e === document.activeElement")
    assert one.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none" or \
        one.evaluate("getComputedStyle(document.activeElement).boxShadow") != "none"
    one.keyboard.type("What is a statement?")
    one.keyboard.press("Enter")
    one.wait_for_function("document.querySelectorAll('.arms .said').length === 4")
    assert one.locator(".arms h3").all_inner_texts() == ["base", "base+retrieval", "tuned", "tuned+retrieval"]
    assert one.locator(".forest").first.is_visible() and one.get_by_text("Paired comparisons").is_visible()
    kept(one, "compare-asked")


def test_an_error_is_said_on_the_page(tab):
    one = tab("/")
    one.get_by_role("button", name="Start", exact=True).click()
    one.wait_for_selector('[role="alert"]')
    assert "Give the run a name" in one.locator('[role="alert"]').first.inner_text()


def test_documents_are_dropped_looked_at_and_planned(tab, tmp_path):
    good, bad = tmp_path / "glue.md", tmp_path / "odd.xyz"
    good.write_text("# Glue\n\n## Hide glue\n\nHide glue is kept warm at sixty degrees by makers of violins. "
                    "${1+1} {{7}} <b>x</b>\n")
    bad.write_bytes(b"\0\1\2")
    one = tab("/")
    one.locator('input[type="file"]').first.set_input_files([str(good), str(bad)])
    one.get_by_label("Name of the run").fill("glue")
    one.get_by_label("Base model").fill("pico")
    one.get_by_role("button", name="Look and plan").click()
    one.get_by_text("What was left out, and why").first.wait_for()
    assert one.get_by_text("odd.xyz").first.is_visible()
    assert "${1+1} {{7}} <b>x</b>" in one.inner_text("body"), "what a document says is text, never a template or markup"
    one.get_by_text("What it would take").wait_for()
    assert one.get_by_text("luthier adapt").first.is_visible()
    kept(one, "adapt-looked")


def test_a_run_is_started_stopped_and_resumed(tab, page):
    one = tab("/", 390)
    one.get_by_label("The demo instead").check()
    one.get_by_label("Name of the run").fill("mine")
    one.get_by_role("button", name="Start", exact=True).click()
    one.get_by_text("running", exact=True).wait_for()
    one.wait_for_function(r"/\[\d+\/13\]/.test(document.body.innerText)")
    one.get_by_role("button", name="Stop").click()
    one.wait_for_function("document.body.innerText.includes('interrupted')")
    kept(one, "adapt-stopped-390")
    one.get_by_role("button", name="Resume").click()
    one.get_by_text("finished", exact=True).first.wait_for(timeout=10 * WAIT)
    one.get_by_text("its report").wait_for()
    assert "loss" in one.locator(".curve").first.evaluate("e => e.getAttribute('aria-label').toLowerCase()")
    kept(one, "adapt-ended-390")


def test_a_run_is_chosen_and_shown(tab):
    one = tab("/runs")
    one.get_by_role("link", name="demo", exact=True).click()
    one.get_by_text("Receipts", exact=True).first.wait_for()
    assert one.locator(".curve").first.is_visible()
    kept(one, "runs-demo")


def test_the_catalogue_finds_and_copies(tab):
    one = tab("/catalogue")
    one.get_by_label("Search").fill("bitdelta worth one bit")
    one.wait_for_function("document.querySelectorAll('details').length === 1")
    one.get_by_role("button", name="copy").first.click()
    assert one.evaluate("navigator.clipboard.readText()") == "luthier merge RUN1 RUN2 --rule bitdelta"
    kept(one, "catalogue-bitdelta")
