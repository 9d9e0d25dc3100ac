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
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

import emu3_jax
from emu3_jax.config import (
    CONFIG_FILE,
    ConfigError,
    config_differences,
    read_config,
    save_config,
    to_values,
)
from emu3_jax.files import AppendedLines, read_lines
from emu3_jax.train.run.checkpoint import has_checkpoints
from emu3_jax.train.tasks import registry

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


class OldDefault(NamedTuple):
    """A default that was changed.

    Attributes:
      task: whose config it is in.
      key: section and field.
      value: what a directory means that was written before and does not state the key.
      until: ISO 8601, UTC: when it was changed.
    """

    task: str
    key: tuple[str, str]
    value: Any
    until: str


# A run directory once stated only the keys of its config file. The history of the defaults since
# then: of all fields, one has another default now.
OLD_DEFAULTS = (
    OldDefault("pretrain", ("model", "attention"), "reference", "2026-11-25T03:08:00+00:00"),
)
# Fields that are constants now: a directory that states the constant's value means the same.
REMOVED = {
    ("codebook", "kmeans_iterations"): 10,
    ("codebook", "usage_decay"): 0.97,
    ("loss", "perceptual_heads"): "",
}


def check(config: Any, workdir: str | os.PathLike, allow_changes: bool) -> str:
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
        for key, pair in config_differences(to_values(read(workdir)), to_values(config)).items()
        if not any(key == free or free[-1] == "." and key.startswith(free) for free in FREE_KEYS)
    }
    shown = "; ".join(f"{k}: {old!r} -> {new!r}" for k, (old, new) in differences.items())
    if differences and not allow_changes:
        raise ConfigError(
            f"{workdir} was begun with another config ({shown}); use a new --workdir, "
            "or --allow_changes to go on with the new one"
        )
    return shown


def claim(config: Any, workdir: str | os.PathLike, allow_changes: bool) -> None:
    """Writes the resolved config into the directory, which is made if it does not exist.

    One process does it for all. Arguments and errors as `check`.
    """
    shown = check(config, workdir, allow_changes)
    if shown:
        print(f"config changed on resume: {shown}", flush=True)
    save_config(to_values(config), workdir)


def read(workdir: str | os.PathLike) -> Any:
    """The resolved config of a run directory, with the defaults of the time it was written.

    Raises:
      ConfigError: no run directory, or a config that is none of this version's.
    """
    values = read_config(workdir)
    try:
        return registry.resolve(_with_old_defaults(values, workdir), workdir)
    except ConfigError as error:
        raise ConfigError(f"{epath.Path(workdir) / CONFIG_FILE}: {error}") from error


def _with_old_defaults(values: dict[str, Any], workdir: str | os.PathLike) -> dict[str, Any]:
    values = dict(values)
    if isinstance(values.get("evaluation"), Mapping):
        # What was evaluated on the way decides nothing of the model, and was told otherwise.
        del values["evaluation"]
    for task, (section, name), value, until in OLD_DEFAULTS:
        stated = values.get(section, {})
        if values.get("task") == task and name not in stated and _written(workdir) < until:
            values[section] = {**stated, name: value}
    for (section, name), value in REMOVED.items():
        stated = values.get(section, {})
        if name in stated and stated[name] == value:
            values[section] = {key: x for key, x in stated.items() if key != name}
    return values


def _written(workdir: str | os.PathLike) -> str:
    """When a run began, ISO 8601 in UTC."""
    if (epath.Path(workdir) / STARTS_FILE).is_file():
        return read_lines(workdir, STARTS_FILE)[0]["time"]
    seconds = (epath.Path(workdir) / CONFIG_FILE).stat().mtime
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


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
    here = pathlib.Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie in a folder of somebody else's checkout.
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes, this one first."""
    found = {"emu3_jax": emu3_jax.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
