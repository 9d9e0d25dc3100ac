"""Which errors a restart may cure."""

import errno

import jax
import pytest
from av.error import InvalidDataError
from PIL import UnidentifiedImageError

from emu3_jax import exit_codes
from emu3_jax.config import ConfigError
from emu3_jax.data.media import MediaError
from emu3_jax.data.tokens.records import RecordError
from emu3_jax.exit_codes import TRANSIENT, USER
from emu3_jax.train.run import distributed
from emu3_jax.train.run.checkpoint import CheckpointError, SaveError
from emu3_jax.train.run.distributed import LostProcessError


def caused(error, cause):
    error.__cause__ = cause
    return error


class RefusedError(OSError):
    """As a library for buckets raises them, without a number."""

    __module__ = "gcsfs.retry"


CASES = [
    (ConfigError("a wrong key"), USER),
    (CheckpointError("holds other arrays"), USER),
    (FileNotFoundError(errno.ENOENT, "No such file"), USER),
    (PermissionError(errno.EACCES, "denied"), USER),
    (OSError(errno.ENOTDIR, "no folder"), USER),
    (OSError("file.py cannot be written: it is a file, expected a folder"), USER),
    (caused(ConfigError("the file cannot be read"), FileNotFoundError("gone")), USER),
    (SaveError("saving step 9 failed (503 backend error)"), TRANSIENT),
    (OSError(errno.EIO, "Input/output error"), TRANSIENT),
    (OSError(errno.ESTALE, "Stale file handle"), TRANSIENT),
    (ConnectionResetError(errno.ECONNRESET, "reset"), TRANSIENT),
    (TimeoutError("no answer"), TRANSIENT),
    (RefusedError("503"), TRANSIENT),
    (caused(RecordError("record 3 cannot be read"), OSError(errno.EIO, "I/O")), TRANSIENT),
    (caused(MediaError("a.png: not an image"), UnidentifiedImageError("a.png")), USER),
    (caused(MediaError("a.mp4: not a clip"), InvalidDataError(1094995529, "invalid")), USER),
    (LostProcessError("did not find each other"), TRANSIENT),
]


@pytest.mark.parametrize(("error", "code"), CASES, ids=[f"{e!r}"[:40] for e, _ in CASES])
def test_a_mistake_is_told_from_what_may_pass(error, code):
    assert exit_codes.of(error) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a wrong key"), USER),
        (SaveError("failed"), TRANSIENT),
        (caused(CheckpointError("x"), jax.errors.JaxRuntimeError("UNAVAILABLE: peer")), TRANSIENT),
        (jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed"), TRANSIENT),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_a_process_of_several_leaves_with_the_same_codes(error, code, monkeypatch):
    codes = []
    monkeypatch.setattr(distributed.os, "_exit", codes.append)
    distributed.leave(error)
    assert codes == [code]


def test_processes_that_do_not_find_each_other(monkeypatch):
    def none(**settings):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: [Init]Wait_for_all_tasks")

    monkeypatch.setattr(jax.distributed, "initialize", none)
    with pytest.raises(LostProcessError, match="did not find each other .*: DEADLINE_EXCEEDED"):
        distributed.initialize("127.0.0.1:1", 2, 1, 5)
