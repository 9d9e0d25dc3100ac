"""The two sides of a comparison with torch: a process each, on the same cores, called in turns."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

CORES = 2


class Process:
    """One side in a process of its own; calls are those of its class."""

    def __init__(self, python: str, script: str, side: str, folder: str):
        words = [python, script, f"--side={side}", f"--folder={folder}"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(CORES)}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.side, self.process = side, subprocess.Popen(words, env=environment, **pipes)

    def __call__(self, method: str, *arguments):
        """The result of the method, converted by JSON."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.side} ended; the reason is above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def run_side(make: Callable[[pathlib.Path], object], folder: pathlib.Path) -> None:
    """Serves the calls of a `Process`, on the cores that both sides share."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    side = make(folder)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(side, method)(*arguments)), flush=True)


def has_torch(python: str, packages: str = "torch, safetensors") -> bool:
    """Whether this Python has the packages of the other side."""
    try:
        done = subprocess.run([python, "-c", f"import {packages}"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0
