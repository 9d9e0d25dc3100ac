"""A run directory belongs to one config: it is checked first and written after all other checks.

Mesh, data, evaluation and the checkpoint's arrays are checked in between, so a command that ends in
an error before its first step leaves the run directory unchanged.
"""

import datetime
import os
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from emu3_jax import provenance
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
# Keys that may change when a run resumes, since they do not change its losses: exact names, or
# sections with a dot at the end.
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
    """The former default of a field.

    Attributes:
      task: the task whose config has the field.
      key: section and field.
      value: the former default; it holds for older directories that do not state the key.
      until: time of the change, ISO 8601 in UTC.
    """

    task: str
    key: tuple[str, str]
    value: Any
    until: str


# Older run directories state only the keys of their config file. These are all fields whose default
# has changed since.
OLD_DEFAULTS = (
    OldDefault("pretrain", ("model", "attention"), "reference", "2026-11-25T03:08:00+00:00"),
)
# Fields that are constants now; a directory that states the constant's value can still be read.
REMOVED = {
    ("codebook", "kmeans_iterations"): 10,
    ("codebook", "usage_decay"): 0.97,
    ("loss", "perceptual_heads"): "",
}


def check(config: Any, workdir: str | os.PathLike, allow_changes: bool) -> str:
    """Returns the differences from the config of existing checkpoints, as "key: old -> new; …".

    Args:
      config: the resolved config.
      workdir: the run directory; need not exist.
      allow_changes: return differences instead of raising.

    Raises:
      ConfigError: `workdir` holds checkpoints of another config; names the keys.
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
    """Writes the resolved config into the run directory and creates it if missing.

    Only the first process calls it. Arguments and errors as `check`.
    """
    shown = check(config, workdir, allow_changes)
    if shown:
        print(f"config changed on resume: {shown}", flush=True)
    save_config(to_values(config), workdir)


def read(workdir: str | os.PathLike) -> Any:
    """Returns the resolved config of a run directory, with the defaults of its time.

    Raises:
      ConfigError: `workdir` is not a run directory, or this version cannot read its config.
    """
    values = read_config(workdir)
    try:
        return registry.resolve(_with_old_defaults(values, workdir), workdir)
    except ConfigError as error:
        raise ConfigError(f"{epath.Path(workdir) / CONFIG_FILE}: {error}") from error


def _with_old_defaults(values: dict[str, Any], workdir: str | os.PathLike) -> dict[str, Any]:
    values = dict(values)
    if isinstance(values.get("evaluation"), Mapping):
        # An older form of the section; evaluation during training does not affect the model.
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
    """Returns when a run began, ISO 8601 in UTC."""
    if (epath.Path(workdir) / STARTS_FILE).is_file():
        return read_lines(workdir, STARTS_FILE)[0]["time"]
    seconds = (epath.Path(workdir) / CONFIG_FILE).stat().mtime
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def record_start(workdir: str | os.PathLike) -> None:
    """Appends a line to starts.jsonl with what is needed to repeat this start."""
    lines = AppendedLines(workdir, STARTS_FILE)
    devices = jax.devices()
    lines.append(
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": provenance.command_words(),
            "revision": provenance.code_revision(),
            "python": platform.python_version(),
            "packages": provenance.package_versions(),
            "processes": jax.process_count(),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
        }
    )
    lines.close()
