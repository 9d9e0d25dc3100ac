"""Configs: python files that return a locked ConfigDict, resolved into frozen dataclasses.

A config file has the keys that differ from the defaults. The commands load it, apply
`--config.a.b=value`, and turn it into dataclasses, which check every key and type and fill in the
defaults (`to_dataclass`). From then on only the dataclasses are used: `to_values` gives all of
their fields, which are written into the run directory and printed by `--print_config`.

`ml_collections.config_flags` could change only keys of the file, since it applies overrides before
the defaults are filled in.
"""

from emu3_jax.config.values import (
    ABSENT,
    CONFIG_FILE,
    ConfigError,
    apply_overrides,
    check_choice,
    config_differences,
    config_leaves,
    load_config,
    read_config,
    save_config,
    to_dataclass,
    to_values,
)

__all__ = [
    "ABSENT",
    "CONFIG_FILE",
    "ConfigError",
    "apply_overrides",
    "check_choice",
    "config_differences",
    "config_leaves",
    "load_config",
    "read_config",
    "save_config",
    "to_dataclass",
    "to_values",
]
