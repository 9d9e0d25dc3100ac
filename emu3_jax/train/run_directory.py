"""A run directory belongs to one config: checked before all else, written once the run goes.

In between, whatever else can be refused (mesh, data, evaluation, the checkpoint's arrays) has been
looked at, so a refused run leaves its directory as it was.
"""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

import jax
import ml_collections

from emu3_jax.config import ConfigError, config_differences, read_config, save_config
from emu3_jax.train.appending import AppendedLines
from emu3_jax.train.checkpoint import has_checkpoints

STARTS_FILE = "starts.jsonl"
PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax",
    "orbax-checkpoint", "grain", "array_record", "numpy", "ml_dtypes", "sentencepiece", "tiktoken",
)  # fmt: skip
# Keys that may differ between the parts of one run, since they do not change its losses: exact
# names, or sections with a dot at the end.
FREE_KEYS = (
    "run.log.",
    "run.checkpoint.",
    "run.mesh.",
    "run.watch.",
    "evaluation",
    "evaluation.",  # a section in directories of earlier versions
    "data.workers",
    "data.prefetch",
    "data.cache_bytes",
)


def check(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, allow_changes: bool
) -> str:
    """Returns how the config differs from that of the existing checkpoints: "key: old -> new; …".

    Args:
      config: the resolved config.
      workdir: need not exist.
      allow_changes: go on although there are differences.

    Raises:
      ConfigError: `workdir` holds checkpoints made with another config; names the keys.
    """
    if not has_checkpoints(workdir):
        return ""
    differences = {
        key: pair
        for key, pair in config_differences(read_config(workdir), config).items()
        if not any(key == free or free[-1] == "." and key.startswith(free) for free in FREE_KEYS)
    }
    shown = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in differences.items())
    if differences and not allow_changes:
        raise ConfigError(
            f"{workdir} was begun with another config ({shown}); use a new --workdir, "
            "or --allow_changes to go on with the new one"
        )
    return shown


def claim(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, allow_changes: bool
) -> None:
    """Writes the resolved config into the directory, which is made if it does not exist.

    One process does it for all. Arguments and errors as `check`.
    """
    shown = check(config, workdir, allow_changes)
    if shown:
        print(f"config changed on resume: {shown}", flush=True)
    save_config(config, workdir)


def record_start(workdir: str | os.PathLike) -> None:
    """Adds a line on this start to starts.jsonl: what would be needed to do it again."""
    lines = AppendedLines(workdir, STARTS_FILE)
    devices = jax.devices()
    lines.append(
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": [sys.executable, *sys.orig_argv[1:]],
            "revision": code_revision(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "processes": jax.process_count(),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
        }
    )
    lines.close()


def code_revision() -> str | None:
    """Commit of the checkout this package runs from, with "+changes" if it was edited; None where
    there is no checkout."""
    here = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
