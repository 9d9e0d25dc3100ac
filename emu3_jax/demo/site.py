"""Serves the page, and nothing else of the machine or of gradio."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from emu3_jax.demo.gate import Gate
from emu3_jax.demo.handlers import Handlers
from emu3_jax.demo.layout import gr, page
from emu3_jax.demo.uploads import MAX_BYTES
from emu3_jax.demo.views import STYLE

FILES = "GRADIO_TEMP_DIR"  # gradio's name of the folder for files of visitors


@contextlib.contextmanager
def served(
    handlers: Handlers, name: str, host: str, port: int | None, waiting: int = 64
) -> Iterator[str]:
    """Serves the page in the background, until the context ends; gives its address.

    Args:
      handlers: what the buttons do.
      name: of the model.
      host: the address to listen at.
      port: the port; None: the first that is free from 7860 on.
      waiting: most requests that wait for the model or are served.

    Raises:
      ValueError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="emu3_demo_", ignore_cleanup_errors=True) as folder:
        os.environ[FILES] = folder
        blocks = page(handlers, name)
        blocks.queue(default_concurrency_limit=waiting // 2, max_size=waiting, api_open=False)
        try:
            yield _launched(blocks, host, port, folder)
        finally:
            blocks.close(verbose=False)


def _launched(blocks: Any, host: str, port: int | None, folder: str) -> str:
    """Starts the server of a page; returns its address."""
    gate = (Gate, (), {"folder": folder, "host": host})
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            show_error=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            max_file_size=MAX_BYTES,
            allowed_paths=[],
            blocked_paths=[],
            state_session_capacity=200,
            app_kwargs={"middleware": [gate], "docs_url": None, "openapi_url": None},
            theme=_theme(),
            css=STYLE,
        )
    except OSError as error:
        raise ValueError(f"The port {port} of {host} cannot be used ({error}).") from error
    return address


def _theme() -> Any:
    """Fonts are the machine's: those of gradio's themes come from another host."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
