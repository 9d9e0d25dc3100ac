"""One writer at a time for a run directory, on a disk or in a bucket.

The lock is a file that names its owner and is renewed while the owner lives. It is free again when
it was not renewed for STALE_S, or at once where its owner was a process of this machine that is
gone: a run that was killed can be started again without waiting. Clocks of hosts may differ by less
than STALE_S.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from emu3_jax import exit_codes
from emu3_jax.files import in_bucket, write_json

LOCK_FILE = "lock.json"
RENEW_S, STALE_S = 20.0, 120.0
# Where several cannot be kept apart the last writer wins: who reads its own name back after this.
_SETTLE_S = 2.0


class LockedError(ValueError, exit_codes.TransientError):
    """Another process uses the directory."""


class RunLock:
    """A context manager: LockedError on entering where another process holds the lock."""

    def __init__(self, workdir: str | os.PathLike):
        self._workdir, self._path = workdir, epath.Path(workdir) / LOCK_FILE
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._ended = threading.Event()

    def __enter__(self) -> "RunLock":
        with _alone_in(self._workdir) as alone:
            found = self._read()
            if found is not None and not _is_free(found):
                raise self._locked(found)
            self._write()
        if not alone:
            time.sleep(_SETTLE_S)
        if not self._is_ours():
            raise self._locked(self._read() or {})
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()
        return self

    def __exit__(self, *raised) -> None:
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(OSError), _alone_in(self._workdir):
            if self._is_ours():
                self._path.unlink()
                _remove_if_empty(self._path.parent)

    def check(self) -> None:
        """LockedError if another process took the directory over, because this one stood still."""
        found = self._read()
        if found is None or found.get("token") != self._owner["token"]:
            raise self._locked(found or {"host": "unknown", "pid": "unknown", "time": time.time()})

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            # A disk that is away for a while is no reason to end; `check` comes before each save.
            with contextlib.suppress(OSError):
                if self._is_ours():
                    self._write()

    def _write(self) -> None:
        write_json(self._path, self._stamped())

    def _stamped(self) -> dict:
        return {**self._owner, "time": time.time()}

    def _read(self) -> dict | None:
        try:
            found = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _is_ours(self) -> bool:
        return (self._read() or {}).get("token") == self._owner["token"]

    def _locked(self, found: dict) -> LockedError:
        age = time.time() - found.get("time", time.time())
        return LockedError(
            f"{self._workdir} is used by process {found.get('pid')} on {found.get('host')}, which "
            f"gave a sign of life {age:.0f} s ago; wait until it ends, or use another directory"
        )


@contextlib.contextmanager
def _alone_in(workdir: str | os.PathLike) -> Iterator[bool]:
    """Makes the folder and keeps other processes out of this block; False where that is impossible.

    It is in a bucket, and on some network file systems.
    """
    if in_bucket(workdir):
        yield False
        return
    folder = pathlib.Path(workdir)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed meanwhile by an owner that leaves nothing behind
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        if os.fstat(handle).st_nlink:  # not removed meanwhile
            break
        os.close(handle)
    try:
        yield alone
    finally:
        os.close(handle)


def _is_free(found: dict) -> bool:
    """Whether the owner of a lock is gone."""
    if time.time() - found.get("time", 0) > STALE_S:
        return True
    return found.get("host") == socket.gethostname() and found.get("started") != _started(
        found.get("pid")
    )


def _started(pid: int | None) -> str | None:
    """What tells a process from a later one of the same number; None where it is gone.

    Where the system has no /proc, all processes that are there read alike.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        if pathlib.Path("/proc/self/stat").exists() or not isinstance(pid, int):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "alive"
    # Behind the name in parentheses: field 22 of proc(5), clock ticks since boot.
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"


def _remove_if_empty(folder: epath.Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
