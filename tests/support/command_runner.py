"""Runs commands of the package, each in a process and a folder of its own, importing once for all.

  python tests/support/command_runner.py <<< '[["folder", ["emu3_jax.convert", "export", …]], …]'

Importing takes longer than these commands work, so every command is a fork of a process that has
imported what they all need and has not touched a device. Prints one line of JSON a command, the
exit code and the output; stops behind the first that fails.
"""

import json
import os
import runpy
import sys

# Imported for the forks: not one of these starts the threads of a backend.
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
    """See the head of this file."""
    for folder, words in json.load(sys.stdin):
        output = os.path.join(folder, "output.txt")
        code = run(folder, words, output)
        with open(output, encoding="utf-8") as file:
            print(json.dumps([code, file.read()]), flush=True)
        if code:
            return


if __name__ == "__main__":
    main()
