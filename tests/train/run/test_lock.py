"""One writer at a time: a lock that a killed process, a lost host and a bucket do not break."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from paths import ROOT
from tiny_pretraining import write_run

from emu3_jax import exit_codes
from emu3_jax.train.run import lock
from emu3_jax.train.run.lock import LOCK_FILE, LockedError, RunLock

HOLD = """
import sys, time
from emu3_jax.train.run.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def _holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    with _holder(tmp_path) as holder:
        with pytest.raises(LockedError, match=f"is used by process {holder.pid} on ") as error:
            RunLock(tmp_path).__enter__()
        assert exit_codes.of(error.value) == exit_codes.TRANSIENT
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK_FILE).exists()  # it could not tidy up
    with RunLock(tmp_path) as held:
        held.check()
    assert not tmp_path.exists()  # nothing else was in it


def _written(folder, **changes):
    """A lock of another process, as it left it."""
    folder.mkdir(exist_ok=True)
    owner = {"host": "elsewhere", "pid": 7, "started": "x", "token": "t", "time": time.time()}
    (folder / LOCK_FILE).write_text(json.dumps(owner | changes))


def test_a_host_that_is_lost_holds_it_for_two_minutes(tmp_path):
    folder = tmp_path / "run"
    _written(folder, time=time.time() - lock.STALE_S + 30)
    with pytest.raises(LockedError, match="process 7 on elsewhere, which gave a sign of life 90 s"):
        RunLock(folder).__enter__()
    _written(folder, time=time.time() - lock.STALE_S - 1)
    with RunLock(folder):
        pass


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    """In a container that is started again every process has the number it had before."""
    folder = tmp_path / "run"
    _written(folder, host=socket.gethostname(), pid=os.getpid(), started="another boot 5")
    with RunLock(folder):
        pass
    _written(folder, host=socket.gethostname(), pid=os.getpid(), started=lock._started(os.getpid()))
    with pytest.raises(LockedError):
        RunLock(folder).__enter__()


def test_of_many_that_find_it_stale_one_gets_it(tmp_path):
    folder = tmp_path / "run"
    _written(folder, time=0)
    won, lost, barrier = [], [], threading.Barrier(8)

    def start():
        own = RunLock(folder)
        barrier.wait()
        try:
            own.__enter__()
        except LockedError:
            lost.append(own)
        else:
            won.append(own)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].check()
    won[0].__exit__()
    assert not folder.exists()


def test_it_is_renewed_and_a_process_that_stood_still_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    with RunLock(tmp_path / "run") as held:
        first = held._read()["time"]
        for _ in range(1000):
            if held._read()["time"] > first:
                break
            time.sleep(0.01)
        assert held._read()["time"] > first
        _written(tmp_path / "run")  # another took it over meanwhile
        with pytest.raises(LockedError, match="process 7 on elsewhere"):
            held.check()
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == 7  # and keeps it


def test_in_a_bucket_the_last_writer_wins(tmp_path, monkeypatch):
    """A folder of the disk stands for the bucket: what differs is that nothing can be linked."""
    monkeypatch.setattr(lock, "in_bucket", lambda path: True)
    monkeypatch.setattr(lock, "_SETTLE_S", 0.0)
    with RunLock(tmp_path / "run") as held:
        held.check()
        with pytest.raises(LockedError):
            RunLock(tmp_path / "run").__enter__()
    _written(tmp_path / "run", time=0)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: _written(tmp_path / "run", pid=8))
    with pytest.raises(LockedError, match="process 8"):
        RunLock(tmp_path / "run").__enter__()


def test_the_command_takes_it(tmp_path):
    """The same command twice: the second ends with a code on which launchers start it again."""
    config = write_run(tmp_path, 8, **{"run.steps": 2, "evaluation": ()})
    command = [sys.executable, "-m", "emu3_jax.train", f"--config={config}"]
    command.append(f"--workdir={tmp_path / 'run'}")
    with _holder(tmp_path / "run") as holder:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        holder.kill()
    assert done.returncode == exit_codes.TRANSIENT
    assert done.stderr.startswith("Error: ") and "is used by process" in done.stderr
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [LOCK_FILE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (epath.Path(tmp_path) / "run" / LOCK_FILE).exists()
