"""Configs: python files that return a locked ConfigDict, resolved into frozen dataclasses.

The library takes dataclasses only. A ConfigDict lives in the commands: it is loaded from a file,
changed by `--config.a.b=value`, written to the run directory, and turned into dataclasses by
`to_dataclass`, which names the nearest valid key when one is wrong.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import ml_collections
from etils import epath

from emu3_jax.files import write_atomically

T = TypeVar("T")

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and what was expected."""


def to_dataclass(cls: type[T], values: Any, where: str = "config") -> T:
    """Builds the dataclass `cls` from a mapping, checking every key and type.

    Args:
      cls: a dataclass; nested dataclass fields are built from nested mappings.
      values: a ConfigDict or dict. Missing keys take the dataclass default.
      where: the dotted name of this section, used in messages ("model").

    Raises:
      ConfigError: unknown key (with the nearest valid one), missing key, or wrong type.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a section with keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_key(key, fields, where))
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(values[name], hints[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} is missing; it has no default")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        # Some dataclasses name the section themselves.
        message = str(error)
        message = message if message.startswith(f"{where}.") else f"{where}: {message}"
        raise ConfigError(message) from error


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """The sentence for a key that does not exist in section `where`, with the nearest that does."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {where}.{near[0]}?" if near else f"valid keys: {', '.join(known)}"
    return f"{where}.{key} does not exist; {hint}"


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the type `hint`, or raises ConfigError."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        hint = next(option for option in options if option is not type(None))
        return _convert(value, hint, where)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else to_dataclass(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a section with keys, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, float, str):
        if type(value) is not hint:
            raise ConfigError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Loads `path/to/config.py` or `path/to/config.py:argument` → locked ConfigDict.

    Raises:
      ConfigError: no such file, or no get_config in it. Mistakes inside the file keep their own
        exception, since its traceback shows the line.
    """
    path, _, argument = spec.partition(":")
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"config file {path} does not exist")
    module_spec = importlib.util.spec_from_file_location("emu3_jax_config", path)
    if module_spec is None:
        raise ConfigError(f"config file {path} must be a python file, named .py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no get_config(arg) function")
    config = module.get_config(argument) if argument else module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config of {path} must return a ConfigDict, got {config!r}")
    return config.lock()


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets dotted keys of `config` from text: {"model.num_layers": "4"}.

    A section must exist. A key in a section need not: a config states only what differs from the
    defaults, and whoever turns the section into its dataclass checks the key.

    Raises:
      ConfigError: no such section or top-level key, or a value of another type.
    """
    for dotted, text in overrides.items():
        section, where = config, "config"
        *parents, last = dotted.split(".")
        for parent in parents:
            if not isinstance(section.get(parent), ml_collections.ConfigDict):
                raise ConfigError(unknown_key(parent, _sections(section), where))
            section, where = section[parent], f"{where}.{parent}"
        if last not in section and not parents:
            raise ConfigError(unknown_key(last, section.keys(), where))
        old = section.get(last)
        if isinstance(old, ml_collections.ConfigDict):
            raise ConfigError(f"{where}.{last} is a section; set one of its keys")
        try:
            with section.unlocked():
                section[last] = _from_text(text, old)
        except TypeError as error:
            raise ConfigError(
                f"{where}.{last} must be of type {type(old).__name__}, got {text!r}"
            ) from error


def _sections(config: ml_collections.ConfigDict) -> list[str]:
    return [k for k, v in config.items() if isinstance(v, ml_collections.ConfigDict)]


def _from_text(text: str, old: Any) -> Any:
    """The value that `text` writes, for a key that holds `old`."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, bool) and type(old) in (int, float):
        return text  # python would take True for 1
    if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)):
        return type(old)(value)
    return value


def save_config(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes the resolved config to workdir/config.json, whole or not at all."""
    text = config.to_json_best_effort(indent=1, sort_keys=True) + "\n"
    write_atomically(epath.Path(workdir) / CONFIG_FILE, text)


def is_run_directory(path: str | os.PathLike) -> bool:
    """Whether `path`, on a disk or in a bucket, is of a run: it has a folder of checkpoints."""
    return (epath.Path(path) / CHECKPOINT_FOLDER).is_dir()


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """Reads workdir/config.json back → locked ConfigDict."""
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    return ml_collections.ConfigDict(values).lock()


def config_differences(
    old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (old value, new value) for every leaf that differs; "<absent>" where missing."""
    old_leaves, new_leaves = (_leaves(json.loads(c.to_json_best_effort())) for c in (old, new))
    return {
        key: (old_leaves.get(key, "<absent>"), new_leaves.get(key, "<absent>"))
        for key in sorted(old_leaves.keys() | new_leaves.keys())
        if old_leaves.get(key, "<absent>") != new_leaves.get(key, "<absent>")
    }


def _leaves(section: dict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in section.items():
        if isinstance(value, dict):
            leaves.update(_leaves(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves
