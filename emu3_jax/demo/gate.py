"""Which requests reach the page: what a browser needs for it, and nothing else.

Gradio has routes for many ends: proxies, recordings, editors, histories in clouds. Of these the
page needs the few of `ROUTES`; the others are not there.
"""

import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

from emu3_jax.demo.uploads import MAX_BYTES

# What the page of a browser asks for; files by their path are checked beside this.
ROUTES = re.compile(
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.+)"
    r"|/gradio_api/(info|app_id|startup-events|theme\.css|queue/(join|data)|upload|upload_progress"
    r"|cancel|reset|heartbeat/\w+)/?"
)
LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
FILE, UPLOAD = "/gradio_api/file=", "/gradio_api/upload"
# Bytes of one request: a few files of the most bytes, and of all others texts and numbers.
MAX_FILES, MAX_OTHER = 4 * MAX_BYTES + (1 << 16), 1 << 20


class Gate:
    """Refuses what the page does not need (ASGI middleware)."""

    def __init__(self, app: Callable[..., Awaitable[None]], folder: str, host: str):
        """A gate of a server.

        Args:
          app: the server.
          folder: the only one whose files are served.
          host: where it listens. If only this machine reaches it, the browser must have been asked
            for this machine: the page of another host that has taken its address is refused.
        """
        self._app, self._folder = app, os.path.realpath(folder)
        self._is_local = host in LOCAL

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with a sentence."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            status, words = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": words.encode()})
        elif scope["type"] != "websocket":
            await self._app(scope, receive, send)

    def _refusal(self, scope: dict) -> tuple[int, str] | None:
        path, headers = scope["path"], dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._is_local and re.sub(r":\d+$", "", host) not in LOCAL:
            return 421, "This page is for the browser of the machine that serves it."
        if path.startswith(FILE):
            file = os.path.realpath(path.removeprefix(FILE))
            is_there = file.startswith(self._folder + os.sep) and os.path.isfile(file)
            return None if is_there else (404, "There is no such file.")
        if not ROUTES.fullmatch(path) or "/../" in path:
            return 404, "There is no such page."
        if scope["method"] != "POST":
            return None
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "The length of the request is not stated."
        most = MAX_FILES if path.rstrip("/") == UPLOAD else MAX_OTHER
        if int(length) > most:
            return 413, f"The request has more than {most >> 20} MiB."
        return None
