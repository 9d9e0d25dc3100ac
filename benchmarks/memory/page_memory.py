"""Memory of the server of the demo page while one visitor draws again and again.

  PYTHONPATH=. python benchmarks/memory/page_memory.py [--requests=200] [--model=styles]

The server is a process of its own, as `bash launch/demo.sh` starts it. Four captions take turns,
each request with a seed of its own. Printed: resident memory before the first request, after each
quarter of them, and as a ratio to that after the first quarter, when all programs are compiled.
"""

import argparse
import contextlib
import json
import pathlib
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import httpx

API = "/gradio_api"
CAPTIONS = (
    "cat, Noto style",
    "red heart",
    "man cook: dark skin tone, Twemoji style",
    "rocket, flat style",
)


class Visitor:
    """A visitor of the page who sends what a browser sends."""

    def __init__(self, address: str, session: str = ""):
        self.http = httpx.Client(base_url=address, timeout=60)
        self.session = session or uuid.uuid4().hex[:10]
        self.config = self.http.get("/config").json()

    def join(self, words: str, *data, event: str = "click") -> httpx.Response:
        """Asks for an event of the component with this label or value."""
        body = {"fn_index": self._number(words, event), "session_hash": self.session}
        return self.http.post(f"{API}/queue/join", json=body | {"data": list(data)})

    def does(self, words: str, *data, event: str = "click") -> list:
        """As `join`; returns each state that is shown, and None at the end for a failure."""
        joined = self.join(words, *data, event=event)
        assert joined.status_code == 200, joined.text
        number = joined.json()["event_id"]
        shown, current = [], None
        with self.http.stream("GET", f"{API}/queue/data?session_hash={self.session}") as lines:
            for line in lines.iter_lines():
                if not line.startswith("data:"):
                    continue
                told = json.loads(line.removeprefix("data:"))
                assert "Traceback" not in line
                if told.get("event_id") != number:
                    continue
                if told["msg"] == "process_generating":
                    current = _patched(current, told["output"]["data"])
                    shown.append(current)
                if told["msg"] == "process_completed":
                    return shown if told["success"] else [*shown, None]

    def _number(self, words: str, event: str) -> int:
        of = {c["id"]: c["props"] for c in self.config["components"]}
        for number, one in enumerate(self.config["dependencies"]):
            for target, name in one["targets"]:
                props = of.get(target, {})
                if name == event and words in (props.get("label"), props.get("value")):
                    return number
        raise AssertionError(words)


def _patched(before, data):
    """States after the first state what changed in each of their parts."""
    if before is None:
        return data
    return [_changed(old, part) for old, part in zip(before, data, strict=True)]


def _changed(old, part):
    if not (isinstance(part, list) and all(isinstance(p, list) and len(p) == 3 for p in part)):
        return part
    for action, path, value in part:
        assert not path
        old = value if action == "replace" else old + value
    return old


@contextlib.contextmanager
def served(model: str) -> Iterator[tuple[str, int]]:
    """Starts the server of a shipped model; gives its address and process id."""
    command = [sys.executable, "-u", "-m", "emu3_jax.demo"]
    command += [f"--model={model}", f"--vision_tokenizer={model}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", server.stdout.readline())[0]
        yield address, server.pid
    finally:
        server.terminate()
        server.wait()


def resident_mib(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def main() -> None:
    """Draws, and prints the memory now and then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="at least 4 (%(default)s)")
    parser.add_argument("--model", default="styles", help="a shipped model (%(default)s)")
    arguments = parser.parse_args()
    with served(arguments.model) as (address, pid):
        visitor, start, first = Visitor(address), time.monotonic(), None
        print(f"before: {resident_mib(pid):.0f} MiB", flush=True)
        for number in range(arguments.requests):
            asked = CAPTIONS[number % len(CAPTIONS)], "8x8", 1, 3.0, 0.7, "sequential", number
            html, words = visitor.does("Draw", *asked)[-1]
            assert html.count("<img") == 1, words
            if (number + 1) % (arguments.requests // 4) == 0:
                memory = resident_mib(pid)
                first = first or memory
                print(
                    f"{number + 1} requests: {memory:.0f} MiB, {memory / first:.2f} of the first "
                    f"quarter, {time.monotonic() - start:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
