"""What produced a file: command, revision of the code, versions, machine, date."""

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence

import emu3_jax

PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax",
    "orbax-checkpoint", "grain", "array_record", "numpy", "ml_dtypes", "sentencepiece", "tiktoken",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What produced a file.

    Attributes:
      command: the command line, with the name of the interpreter instead of its path.
      revision: `code_revision`.
      versions: package → version, those that a reader needs to repeat it.
      machine: `machine`.
      time: ISO 8601 in UTC, to the minute.
    """

    command: str
    revision: str | None
    versions: dict[str, str]
    machine: str
    time: str

    def sentence(self) -> str:
        """All but the command: time; versions; revision; machine."""
        revision, _, edited = (self.revision or "").partition("+")
        code = f"revision {revision[:12]}" if revision else "no checkout"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.time}; {versions}; {code}{edited and ' with changes'}; {self.machine}"


def of_this_process() -> Provenance:
    """Returns what this process is, now."""
    versions = {**package_versions(), "Python": platform.python_version()}
    return Provenance(
        command=command_line(command_words()),
        revision=code_revision(),
        versions={name: versions[name] for name in ("emu3_jax", "jax", "Python")},
        machine=machine(),
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def command_words() -> list[str]:
    """Returns the words that started this process."""
    return [sys.executable, *sys.orig_argv[1:]]


def command_line(words: Sequence[str]) -> str:
    """Returns the words of a command as one line, the interpreter without its folder."""
    first, *rest = words
    return shlex.join([pathlib.PurePath(first).name, *rest])


def machine() -> str:
    """Returns the processor, the cores that this process may use, and the memory.

    Accelerators are not asked for: that would take them from a process that is using them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_processor(), f"{cores} core{'s' * (cores != 1)}"]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


def code_revision() -> str | None:
    """Returns the commit of the package's checkout, with "+changes" if files were edited; None
    without a checkout."""
    here = pathlib.Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie inside the checkout of another project.
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """Returns package → version for those that decide what a run computes, this one first."""
    found = {"emu3_jax": emu3_jax.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
