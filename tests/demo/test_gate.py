"""Which requests reach the page; without gradio."""

import asyncio

import pytest

from emu3_jax.demo.gate import MAX_FILES, MAX_OTHER, Gate


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "files"
    inner.mkdir()
    (inner / "own.png").write_bytes(b"own")
    (tmp_path / "secret").write_bytes(b"secret")
    (inner / "link").symlink_to(tmp_path / "secret")
    return inner


def asked(folder, path, method="GET", name="localhost", listening="127.0.0.1", **headers):
    """The status of an answer of the gate; 200 if it lets the request pass."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    named = {"host": name, **headers}
    pairs = [(key.replace("_", "-").encode(), value.encode()) for key, value in named.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": pairs}
    asyncio.run(Gate(app, str(folder), listening)(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/a.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/ab1"]
)
def test_what_the_page_needs_passes(folder, path):
    assert asked(folder, path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://example.org", "/gradio_api/run/predict", "/gradio_api/call/draw",
        "/gradio_api/component_server", "/gradio_api/vibe-edit", "/gradio_api/deep_link",
        "/gradio_api/process_recording", "/gradio_api/run-history/buckets", "/gradio_api/runs",
        "/gradio_api/file/etc/passwd", "/file=/etc/passwd", "/monitoring", "/docs",
        "/assets/../secret", "/static/../../secret", "/gradio_api/stream/x", "//", "/login",
    ],
)  # fmt: skip
def test_other_routes_are_not_there(folder, path):
    assert asked(folder, path) == 404
    assert asked(folder, path, "POST", content_length="1") == 404


def test_files_of_visitors_are_served_and_no_others(folder):
    def of(path):
        return asked(folder, f"/gradio_api/file={path}")

    assert of(folder / "own.png") == 200
    for path in (
        folder, folder.parent / "secret", f"{folder}/../secret", folder / "link", "/etc/passwd",
        f"{folder}/./../secret", "README.md", "", "http://example.org/a.png", f"{folder}x/own.png",
        "/proc/self/environ", folder / "none.png",
    ):  # fmt: skip
        assert of(path) == 404, path


def test_large_requests_are_refused_before_they_are_read(folder):
    def upload(**headers):
        return asked(folder, "/gradio_api/upload", "POST", **headers)

    assert upload(content_length="1000") == 200
    assert upload(content_length=str(MAX_FILES)) == 200
    assert upload(content_length=str(MAX_FILES + 1)) == 413
    for length, status in ((MAX_OTHER, 200), (MAX_OTHER + 1, 413)):
        asks = dict(method="POST", content_length=str(length))
        assert asked(folder, "/gradio_api/queue/join", **asks) == status
    assert upload() == upload(content_length="-1") == upload(transfer_encoding="chunked") == 411


@pytest.mark.parametrize(
    "name, listening, status",
    [
        ("localhost:7860", "127.0.0.1", 200),
        ("127.0.0.1", "localhost", 200),
        ("[::1]:7860", "::1", 200),
        ("evil.example:7860", "127.0.0.1", 421),
        ("localhost.evil.example", "localhost", 421),
        ("gpu-host:7860", "0.0.0.0", 200),
    ],
)
def test_the_pages_of_other_hosts_do_not_reach_a_local_server(folder, name, listening, status):
    assert asked(folder, "/", name=name, listening=listening) == status
