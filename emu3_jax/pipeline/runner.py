"""Runs stages in order, so that a stop at any point loses no finished work.

Each stage has a marker, DIRECTORY/stages/NAME.json, with a fingerprint of its command, the content
of its inputs and the fingerprints of the stages before it. A finished stage with an unchanged
fingerprint is skipped; a stopped stage continues from what it had written; a stage with a changed
fingerprint is redone.

Ctrl-C, SIGTERM and SIGHUP are forwarded to the running command, which ends by itself (training
saves a checkpoint first). The commands run in their own process groups, so that a Ctrl-C at the
terminal does not reach them twice.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from emu3_jax.files import write_json
from emu3_jax.pipeline.stage import Stage

STAGES_FOLDER = "stages"
LOGS_FOLDER = "logs"
RESUMED_FILE = "resumed.json"
_STEP = re.compile(r"^step (\d+)/\d+ ")
_RESUMED = re.compile(r"^resumed from step (\d+)")


class StageError(ValueError):
    """A stage that failed; the sentence names it and its log."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """The user stopped the pipeline; running it again continues."""


def read_json(path: pathlib.Path, default=None):
    """Reads a JSON file; `default` if there is none."""
    return json.loads(path.read_text()) if path.is_file() else default


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[int]:
    """Holds the directory's lock, which running commands inherit; ValueError if another has it."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process (or a command that it left running) is running in {directory}"
            ) from None
        yield file.fileno()


class Runner:
    """Runs stages below one directory; use inside `locked`."""

    def __init__(self, directory: pathlib.Path, lock: int, say=print):
        self.directory, self._lock, self._say = directory, lock, say
        self.fingerprints: dict[str, str] = {}
        self.ran: set[str] = set()
        self._child: subprocess.Popen | None = None
        self._stopping = False

    def run(self, stages: Sequence[Stage], number: int, total: int) -> None:
        """Runs the unfinished stages; `number` is that of the first of `total` stages.

        Raises:
          StageError: a command failed. Stopped: a signal arrived.
        """
        with self._signals():
            for index, stage in enumerate(stages, number):
                self._stage(stage, f"[{index}/{total}]")

    def seconds(self, stage: Stage) -> float:
        """Time of the stage in seconds, over all its runs."""
        return self._marker(stage).get("seconds", 0.0)

    def _stage(self, stage: Stage, number: str) -> None:
        fingerprint = self._fingerprint(stage)
        self.fingerprints[stage.name] = fingerprint
        marker = self._marker(stage)
        complete = all(path.exists() for path in stage.outputs)
        fresh = self.ran.isdisjoint(stage.after)
        same = marker.get("fingerprint") == fingerprint
        if marker.get("done") and same and complete and fresh:
            self._say(f"{number} {stage.title}: done before ({_duration(marker['seconds'])})")
            return
        stopped = marker and same and not marker.get("done")
        if stopped and stage.resumable:
            self._say(f"{number} was stopped before: continuing")
        elif marker:
            why = "was stopped before" if stopped else "has other inputs or lacks its results"
            self._say(f"{number} {why}: running again")
            for path in stage.outputs:
                _remove(path)
            marker = {}
        self._say(f"\n{number} {stage.title}\n  {stage.shown()}")
        self.ran.add(stage.name)
        marker = {
            "fingerprint": fingerprint, "done": False, "seconds": marker.get("seconds", 0.0),
            "title": stage.title, "command": stage.shown(),
        }  # fmt: skip
        self._write_marker(stage, marker)
        began = time.monotonic()
        try:
            self._command(stage)
        finally:
            marker["seconds"] += time.monotonic() - began
            self._write_marker(stage, marker)
        self._write_marker(stage, marker | {"done": True})
        self._say(f"  ({_duration(marker['seconds'])})")

    def _command(self, stage: Stage) -> None:
        if self._stopping:
            raise Stopped
        log = self.directory / LOGS_FOLDER / f"{stage.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            interrupted = self._watch(stage, file)
            code = self._child.wait()
        self._child = None
        if self._stopping:
            raise Stopped
        # A training that was ended by a signal exits with this code.
        if code and not (interrupted and code == 128 + signal.SIGTERM):
            raise StageError(f"{stage.title}: the command failed (exit {code}); its log is {log}")
        if stage.interrupt_at and not interrupted:
            raise StageError(
                f"{stage.title}: the training ended before it could be interrupted; give --steps "
                f"of more than {stage.interrupt_at}"
            )

    def _watch(self, stage: Stage, log) -> bool:
        """Starts the command, forwards its lines, interrupts it if due; True if interrupted."""
        self._child = subprocess.Popen(
            [sys.executable, *stage.command],
            env=_environment(stage.devices),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace",
            process_group=0, pass_fds=(self._lock,),
        )  # fmt: skip
        interrupted = False
        for line in self._child.stdout:
            self._say("  " + line.rstrip("\n"))
            log.write(line)
            log.flush()
            if found := _RESUMED.match(line):
                self._note_resume(int(found[1]))
            found = _STEP.match(line)
            if stage.interrupt_at and found and int(found[1]) >= stage.interrupt_at:
                if not interrupted:
                    self._say(f"  -- sending SIGTERM to the training at step {found[1]} --")
                    self._child.terminate()
                interrupted = True
        return interrupted

    def _note_resume(self, step: int) -> None:
        path = self.directory / RESUMED_FILE
        write_json(path, sorted({*read_json(path, []), step}))

    @contextlib.contextmanager
    def _signals(self):
        """Forwards signals to the running command; between commands they raise Stopped."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            # Every command ends cleanly on SIGINT.
            self._child.send_signal(signal.SIGINT)

    def _fingerprint(self, stage: Stage) -> str:
        digest = hashlib.sha256(json.dumps(stage.command).encode())
        digest.update(f"{stage.interrupt_at} {stage.devices} {stage.settings}".encode())
        for name in stage.after:
            digest.update(self.fingerprints[name].encode())
        for path in stage.inputs:
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:16]

    def _marker_file(self, stage: Stage) -> pathlib.Path:
        return self.directory / STAGES_FOLDER / f"{stage.name}.json"

    def _marker(self, stage: Stage) -> dict:
        return read_json(self._marker_file(stage), {})

    def _write_marker(self, stage: Stage, marker: dict) -> None:
        write_json(self._marker_file(stage), marker)


def timeline(directory: pathlib.Path) -> tuple[list[tuple[str, float]], list[tuple[str, str]]]:
    """(title, seconds) and (title, command) of the finished stages, in the order they ran."""
    folder = directory / STAGES_FOLDER
    files = [file for file in folder.glob("*.json") if file.stem != "report"]
    markers = [(read_json(f), f.stat().st_mtime) for f in files]
    done = [m for m, _ in sorted(markers, key=lambda pair: pair[1]) if m["done"]]
    seconds = [(m["title"], m["seconds"]) for m in done]
    return seconds, [(m["title"], m["command"]) for m in done]


def peak_memory_bytes() -> int:
    """Largest resident memory of any command so far."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _environment(devices: int) -> dict[str, str]:
    settings = {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip
    return {**os.environ, **settings}


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
