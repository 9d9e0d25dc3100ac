"""The page over HTTP, as a browser asks for it, and as somebody with other ends would."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio: pip install -r requirements-demo.txt")

import httpx
from test_handlers import endless
from test_uploads import bomb, saved

from benchmarks.memory.page_memory import API, Visitor
from emu3_jax.demo import site
from emu3_jax.demo.handlers import Handlers
from emu3_jax.demo.tabs import imaging
from emu3_jax.demo.uploads import MAX_BYTES
from emu3_jax.demo.visitors import Visitors


class Browser(Visitor):
    """A visitor who also uploads."""

    def upload(self, name, content):
        return self.http.post(f"{API}/upload", files={"files": (name, content)})


@pytest.fixture(scope="module")
def address(exhibit):
    with site.served(Handlers(exhibit, Visitors()), "tiny", "127.0.0.1", None) as address:
        yield address


@pytest.fixture
def browser(address):
    return Browser(address)


DRAW = ["a", "3x4", 2, 2.0, 1.0, "sequential", 4]


def file_of(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def test_the_page_asks_no_other_host(browser):
    for path in ("/", "/theme.css"):
        page = browser.http.get(path).text
        hosts = set(re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(https?:)?//", page))
        assert not hosts, path
    assert browser.config["analytics_enabled"] is False
    assert "fonts.g" not in json.dumps(browser.config)


def test_a_visitor_draws(browser):
    *_, (html, words) = browser.does("Draw", *DRAW)
    assert html.count("<img") == 2 and "Drawn in" in words
    *_, (html, words) = browser.does("Draw", "a", "big", *DRAW[2:])
    assert "The size is" in words and "says wrong" in words


def test_visitors_draw_at_once(address):
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: Browser(address).does("Draw", *DRAW)[-1], range(6)))
    assert len({html for html, _ in found}) == 1 and found[0][0].count("<img") == 2


def test_a_visitor_changes_their_mind(address, monkeypatch):
    monkeypatch.setattr(imaging, "draw", endless)
    browser = Browser(address)
    with ThreadPoolExecutor() as pool:
        drawing = pool.submit(browser.does, "Draw", *DRAW)
        while not drawing.done():
            Browser(address, browser.session).join("Stop")
    assert "Stopped." in drawing.result()[-1][1]


def test_an_image_is_uploaded_and_looked_into(browser):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    (path,) = browser.upload("photo.png", saved(pixels, "PNG")).json()
    *_, (html, words) = browser.does("Image", file_of(path), "a", event="change")
    assert "PSNR" in html and words == ""
    assert browser.http.get(f"{API}/file={path}").content == saved(pixels, "PNG")


@pytest.mark.parametrize(
    "content, words",
    [(b"no image", "not an image"), (bomb(10_000), "10000x10000 pixels is more than the limit")],
    ids=["text", "bomb"],
)
def test_a_bad_image_is_refused_in_a_sentence(browser, content, words):
    (path,) = browser.upload("photo.png", content).json()
    *_, (html, said) = browser.does("Image", file_of(path), "", event="change")
    assert html == "" and words in said and "/" not in said.replace("</p>", "")


def test_uploads_are_limited(browser):
    answer = browser.upload("large.png", bytes(MAX_BYTES + 1))
    assert answer.status_code == 413 and len(answer.text) < 200
    assert browser.upload("huge.png", bytes(5 * MAX_BYTES)).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/etc/../etc/passwd", "/proc/self/environ", "README.md", "../README.md",
        "assets/text_nano.model", "C:/Windows/win.ini", "file:///etc/passwd", "//etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd", "/dev/null",
    ],
)  # fmt: skip
def test_no_file_of_the_host_is_served(browser, address, path):
    for route in (f"{API}/file=", f"{API}/file/", "/file=", "/file/", "/static/", "/assets/",
                  f"{API}/proxy=", "/custom_component/"):  # fmt: skip
        answer = httpx.get(httpx.URL(address.rstrip("/") + route + path))
        assert answer.status_code in (403, 404), (route, path)
        assert "root:" not in answer.text and "Traceback" not in answer.text


@pytest.mark.parametrize(
    "value",
    [
        file_of("/etc/passwd"),
        file_of("/etc/hostname", orig_name="a.png"),
        file_of("../../../etc/passwd"),
        file_of("https://127.0.0.1:1/a.png", url="https://127.0.0.1:1/a.png"),
        file_of("", url="file:///etc/passwd"),
        "/etc/passwd",
        {"path": "/etc/passwd"},
        {"_type": "update", "value": "/etc/passwd"},
    ],
)
def test_no_path_of_the_host_is_read_as_an_upload(browser, value):
    shown = browser.does("Image", value, "", event="change")
    for state in shown:
        assert state is None or "<img" not in state[0]
        assert "root:" not in json.dumps(state)


def test_there_is_no_programming_interface(browser):
    found = browser.http.get(f"{API}/info").json()
    assert found == {"named_endpoints": {}, "unnamed_endpoints": {}}
    for route in ("call/draw", "run/predict", "run/0", "api/predict", "component_server"):
        assert browser.http.post(f"{API}/{route}", json={"data": []}).status_code == 404


def test_a_port_that_is_taken_is_named(exhibit, address):
    port = int(re.search(r":(\d+)", address)[1])
    with pytest.raises(ValueError, match=f"^The port {port} of 127.0.0.1 cannot be used"):
        with site.served(Handlers(exhibit, Visitors()), "tiny", "127.0.0.1", port):
            pass
