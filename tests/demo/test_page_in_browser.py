"""The page in a real browser: Chromium without a window."""

import re
import shutil

import numpy as np
import pytest
from test_uploads import saved

pytest.importorskip("gradio", reason="the page needs gradio: pip install -r requirements-demo.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from emu3_jax.demo import site
from emu3_jax.demo.handlers import Handlers
from emu3_jax.demo.visitors import Visitors

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH"),
]


@pytest.fixture(scope="module")
def address(exhibit):
    with site.served(Handlers(exhibit, Visitors()), "tiny", "127.0.0.1", None) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium, address):
    """Opens the page for a visitor; fails for errors, and for requests to other hosts."""
    pages, wrong = [], []

    def note(request):
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    def visit(width=1280):
        page = chromium.new_page(viewport={"width": width, "height": 900})
        page.on("request", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: answer.status >= 400 and wrong.append(answer.url))
        page.goto(address)
        page.get_by_role("button", name="Draw", exact=True).wait_for()
        pages.append(page)
        return page

    yield visit
    for page in pages:
        page.close()
    assert not wrong


def draws(page, caption, size):
    page.get_by_label("Caption").first.fill(caption)
    box = page.get_by_role("listbox", name="Size").or_(page.get_by_label("Size")).first
    box.fill(size)
    box.press("Enter")
    page.get_by_role("button", name="Draw", exact=True).click()


def said(page, words):
    page.locator(".says:visible", has_text=re.compile(words)).first.wait_for(timeout=60_000)


def test_a_visitor_draws_and_changes_their_mind(visitor):
    page = visitor()
    draws(page, "a", "3x4")
    said(page, "^Drawn in")
    assert page.locator(".emu.gallery img:visible").count() == 4
    draws(page, "b", "9x9")
    page.get_by_role("button", name="Stop").first.click()
    said(page, r"^Stopped\.$|^Drawn in")
    draws(page, "b", "big")
    said(page, "^The size is 'big'")


def test_two_visitors_draw_at_once(visitor):
    pages = [visitor(), visitor(390)]
    for page in pages:
        draws(page, "a", "3x4")
    for page in pages:
        said(page, "^Drawn in")
        assert page.locator(".emu.gallery img:visible").count() == 4
    narrow = pages[1].evaluate("document.documentElement.scrollWidth")
    assert narrow <= 390  # nothing is wider than a phone


def test_a_visitor_looks_into_a_photograph(visitor, tmp_path):
    page = visitor()
    page.get_by_role("tab", name="Look inside").click()
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (30, 40, 3), np.uint8), np.ones((100, 100, 1), np.uint8))
    for name, content, words in [
        ("photo.jpg", saved(pixels, "JPEG"), None),
        ("bad.jpg", b"not an image", "bad.jpg: not an image"),
    ]:
        (tmp_path / name).write_bytes(content)
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Click to Upload").locator("visible=true").click()
        chooser.value.set_files(tmp_path / name)
        if words is None:
            page.get_by_text("surprisal of each code").wait_for(timeout=60_000)
            page.get_by_role("button", name=re.compile("clear|remove", re.I)).first.click()
        else:
            said(page, words)


def test_a_visitor_chats(visitor, tmp_path):
    page = visitor()
    page.get_by_role("tab", name="Chat").click()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(saved(pixels, "PNG"))
    page.locator("input[type=file]:visible, input[data-testid=file-upload]").first.set_input_files(
        tmp_path / "a.png"
    )
    page.get_by_placeholder("Ask, and attach images").fill("What is it?")
    page.get_by_placeholder("Ask, and attach images").press("Enter")
    page.get_by_text("What is it?").first.wait_for()
