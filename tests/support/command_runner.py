"""Runs commands of the package, each in its own process and folder, with one import for all.

  python tests/support/command_runner.py <<< '[["folder", ["emu3_jax.convert", "export", …]], …]'

Importing takes longer than the commands themselves, so every command is a fork of a process that
has imported the common modules and has not touched a device. Prints one line of JSON per command,
with the exit code and the output; stops after the first failure.
"""

import json
import os
import runpy
import sys

# Imported for the forks: none of these starts the threads of a backend.
import flax.linen  # noqa: F401
import grain  # noqa: F401
import jax  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401


def run(folder: str, words: list[str], output: str) -> int:
    """The exit code of one command; its output goes to a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.chdir(folder)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """Runs the commands given on stdin as JSON."""
    for folder, words in json.load(sys.stdin):
        output = os.path.join(folder, "output.txt")
        code = run(folder, words, output)
        with open(output, encoding="utf-8") as file:
            print(json.dumps([code, file.read()]), flush=True)
        if code:
            return


if __name__ == "__main__":
    main()
