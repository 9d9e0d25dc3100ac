"""Config files, overrides, and the dataclasses that they become."""

import ast
import dataclasses
import difflib
import importlib.util
import json
import os
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import ml_collections
from etils import epath

from emu3_jax import shipped
from emu3_jax.files import read_json, write_json

T = TypeVar("T")

CONFIG_FILE = "config.json"
TOP = "config"
ABSENT = "<absent>"


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and what was expected."""


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """ValueError that names the key if its value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")


def to_dataclass(cls: type[T], values: Any, where: str = TOP) -> T:
    """Builds the dataclass `cls` from a mapping, checking every key and type.

    Args:
      cls: a dataclass; nested dataclass fields are built from nested mappings.
      values: a ConfigDict or dict. Missing keys take the dataclass default.
      where: the dotted name of this section in messages ("model"); TOP for a whole config, whose
        sections are named without it.

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
            arguments[name] = _convert(values[name], hints[name], _inside(where, name, hints[name]))
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


def _inside(where: str, name: str, hint: Any) -> str:
    """The dotted name of a field; sections of a whole config have no prefix."""
    is_section = dataclasses.is_dataclass(hint) or typing.get_origin(hint) in (tuple, dict)
    return name if where == TOP and is_section else f"{where}.{name}"


def to_values(config: Any) -> dict[str, Any]:
    """Every field of a resolved config, nested like the dataclasses, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """The message for a key that is not in section `where`, with the nearest valid one."""
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
    """Loads `path/to/config.py` or the shipped config `name`, or either with `:argument`.

    Returns:
      A locked ConfigDict.

    Raises:
      ConfigError: no such file or name, or no get_config in it. Errors inside the file keep their
        own exception, since its traceback has the line.
    """
    name, _, argument = spec.partition(":")
    try:
        path = shipped.config_file(name)
    except shipped.UnknownNameError as error:
        raise ConfigError(str(error)) from error
    module_spec = importlib.util.spec_from_file_location("emu3_jax_config", path)
    if module_spec is None:
        raise ConfigError(f"config file {path} must be a python file, named .py")
    module = importlib.util.module_from_spec(module_spec)
    with shipped.importable_configs(path):
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} has no get_config(arg) function")
        config = module.get_config(argument) if argument else module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config of {path} must return a ConfigDict, got {config!r}")
    return config.lock()


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets dotted keys of `config` from text: {"model.num_layers": "4", "evaluation.0.every": "9"}.

    Sections and keys need not exist: a config has only what differs from the defaults, and
    `to_dataclass` checks every key.

    Raises:
      ConfigError: a section is set like a value, or a value has another type than the old one.
    """
    for dotted, text in overrides.items():
        if _set_in_list(config, dotted.split("."), text):
            continue
        section, where = config, "config"
        *parents, last = dotted.split(".")
        for parent in parents:
            if parent not in section:
                with section.unlocked():
                    section[parent] = ml_collections.ConfigDict()
            section, where = section[parent], f"{where}.{parent}"
            if not isinstance(section, ml_collections.ConfigDict):
                raise ConfigError(f"{where} is {section!r} and has no key {last}")
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


def _set_in_list(config: ml_collections.ConfigDict, keys: list[str], text: str) -> bool:
    """Sets the value at `keys` if they pass a list (evaluation.0.every); else returns False."""
    section, where = config, "config"
    for depth, key in enumerate(keys[:-1], 1):
        value, where = section.get(key), f"{where}.{key}"
        if isinstance(value, (list, tuple)):
            with section.unlocked():
                section[key] = _replaced(value, keys[depth:], text, where)
            return True
        if not isinstance(value, ml_collections.ConfigDict):
            return False
        section = value
    return False


def _replaced(value: Any, keys: list[str], text: str, where: str) -> Any:
    """A copy of `value` (lists and dicts) with the value of `text` at `keys`."""
    if not keys:
        if isinstance(value, dict):
            raise ConfigError(f"{where} is a section; set one of its keys")
        return _from_text(text, value)
    key, *rest = keys
    if isinstance(value, (list, tuple)):
        known = [str(index) for index in range(len(value))]
        if key not in known:
            raise ConfigError(
                f"{where}.{key} does not exist; {where} is a list with the entries "
                f"{', '.join(known) or '(none)'}"
            )
        items = list(value)
        items[int(key)] = _replaced(items[int(key)], rest, text, f"{where}.{key}")
        return type(value)(items)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{where} has no keys; it is {value!r}")
    value = value or {}
    return value | {key: _replaced(value.get(key), rest, text, f"{where}.{key}")}


def _sections(config: ml_collections.ConfigDict) -> list[str]:
    return [k for k, v in config.items() if isinstance(v, ml_collections.ConfigDict)]


def _from_text(text: str, old: Any) -> Any:
    """The value that `text` spells, for a key with the value `old`."""
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


def save_config(values: Mapping[str, Any], workdir: str | os.PathLike) -> None:
    """Writes a resolved config (`to_values`) to workdir/config.json atomically."""
    write_json(epath.Path(workdir) / CONFIG_FILE, values)


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads workdir/config.json as it was written."""
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}")
    try:
        return read_json(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (old value, new value) for every leaf that differs; ABSENT where missing.

    Lists of sections have keys by index: "data.mixture.0.weight".
    """
    old_leaves, new_leaves = config_leaves(old), config_leaves(new)
    pairs = {
        key: (old_leaves.get(key, ABSENT), new_leaves.get(key, ABSENT))
        for key in sorted(old_leaves.keys() | new_leaves.keys())
    }
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def config_leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted key → value of every leaf; lists of sections have keys by index."""
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        value = {str(index): entry for index, entry in enumerate(value)}
    if not isinstance(value, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value}
    leaves = {}
    for key, inner in value.items():
        leaves |= config_leaves(inner, f"{name}.{key}" if name else key)
    return leaves
