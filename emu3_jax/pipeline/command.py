"""What the commands of pipelines share: --directory and --fresh, the clock, and the exit codes."""

import argparse
import pathlib
import shutil
import sys
import time
from collections.abc import Callable

from emu3_jax.files import in_words
from emu3_jax.pipeline.runner import STAGES_FOLDER, StageError, Stopped, peak_memory_bytes


def parser(module: str, description: str | None, directory: pathlib.Path):
    """Returns an argument parser of `python -m module` with --directory and --fresh."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--directory", type=pathlib.Path, default=directory,
                      help="directory for all output (%(default)s)")  # fmt: skip
    made.add_argument("--fresh", action="store_true", help="remove the directory first")
    return made


def run(arguments: argparse.Namespace, work: Callable[[Callable[[str], None]], pathlib.Path]):
    """Calls work(say), which returns the report's path, and ends the process.

    Exit code 130 after a stop by a signal, 2 after an error, which is one sentence on stderr.
    """
    began = time.monotonic()
    try:
        if arguments.fresh and (arguments.directory / STAGES_FOLDER).is_dir():
            shutil.rmtree(arguments.directory)
        report = work(lambda text: print(text, flush=True))
    except Stopped:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        sys.exit(130)
    except (StageError, ValueError, OSError) as error:
        print(f"\nError: {in_words(error)}", file=sys.stderr)
        sys.exit(2)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"\n{minutes} min {seconds:02d} s; peak memory of a command "
          f"{peak_memory_bytes() / 1e9:.1f} GB")  # fmt: skip
    print(f"Report: {report.absolute()}")
