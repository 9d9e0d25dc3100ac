"""A run directory belongs to one config: checked before all else, written once the run goes.

In between, whatever else can be refused (mesh, data, evaluation, the checkpoint's arrays) has been
looked at, so a refused run leaves its directory as it was.
"""

import pathlib

import jax
import ml_collections

from emu3_jax.config import ConfigError, config_differences, read_config, save_config
from emu3_jax.train.checkpoint import has_checkpoints

# Keys that may differ between the parts of one run, since they do not change its losses: exact
# names, or sections with a dot at the end.
FREE_KEYS = (
    "run.log.",
    "run.checkpoint.",
    "run.mesh.",
    "evaluation.",
    "data.workers",
    "data.prefetch",
    "data.cache_bytes",
)


def check(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, allow_changes: bool
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
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, allow_changes: bool
) -> None:
    """Writes the resolved config into the directory, which is made if it does not exist.

    Arguments and errors as `check`.
    """
    shown = check(config, workdir, allow_changes)
    if shown:
        print(f"config changed on resume: {shown}", flush=True)
    if jax.process_index() == 0:
        save_config(config, workdir)
