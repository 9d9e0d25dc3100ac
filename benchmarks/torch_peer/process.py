"""The other side of a benchmark: an object in a process of its own, called line by line."""

import contextlib
import importlib
import json
import subprocess
import sys


class Process:
    """Starts a Python that holds `module.Theirs(*arguments)`; calls are those of its methods.

    Arguments and results are converted by JSON.
    """

    def __init__(self, python: str, module: str, *arguments: str):
        """`python` is the interpreter of an environment that has what the module needs."""
        words = [python, "-m", "benchmarks.torch_peer.process", module, *arguments]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._module, self._process = module, subprocess.Popen(words, **pipes)

    def __call__(self, method: str, *arguments):
        """The result of the method."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._module} ended; the reason is above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def has_packages(python: str, packages: str) -> bool:
    """Whether this Python can import them."""
    try:
        done = subprocess.run([python, "-c", f"import {packages}"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def serve() -> None:
    """Answers lines of JSON [method, *arguments], one by one, until the input ends."""
    module, *arguments = sys.argv[1:]
    side, answers = importlib.import_module(module).Theirs(*arguments), sys.stdout
    for line in sys.stdin:
        method, *given = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            result = getattr(side, method)(*given)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    serve()
