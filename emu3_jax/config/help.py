"""The keys of configs in words, for `--help`: from the dataclasses and their docstrings alone."""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

WIDTH = 100

# An entry of a docstring's "Attributes:" section; several fields may share one.
_ENTRY = re.compile(r"(\w+(?:, \w+)*): +(.*)", re.DOTALL)


class Key(NamedTuple):
    """A field of a config, or several that share a description.

    Attributes:
      defaults: dotted name → default in words; "" for a section.
      text: the description.
      inner: keys of the section that the field is.
    """

    defaults: dict[str, str]
    text: str
    inner: tuple["Key", ...] = ()

    @property
    def title(self) -> str:
        """Names with their defaults: "min_pixels (262144), max_pixels (1048576)"."""
        named = (f"{name} ({value})" if value else name for name, value in self.defaults.items())
        return ", ".join(named)


def listing(configs: Mapping[str, type], what: str = "", prefix: str = "") -> str:
    """Returns the keys of several configs with defaults; what all have alike comes once, first.

    Args:
      configs: name → dataclass.
      what: what the names are, for the headings ("task"); "" with a single config: no heading.
      prefix: put before every key ("evaluation.N.").
    """
    keys = {name: keys_of(config, prefix) for name, config in configs.items()}
    first = next(iter(keys.values()))
    alike = [key for key in first if all(key in others for others in keys.values())]
    if len(keys) == 1:
        heading = f"{what} {next(iter(keys))}" if what else ""
        return _block(heading, first)
    blocks = [_block(f"every {what}", alike)]
    for name, own in keys.items():
        blocks.append(_block(f"{what} {name}", [key for key in own if key not in alike]))
    return "\n\n".join(blocks)


def keys_of(config: type, prefix: str = "", defaults: Any = None) -> list[Key]:
    """Returns the keys of a dataclass in order; `defaults` is an instance that has their values."""
    hints, known = typing.get_type_hints(config), descriptions(config)
    keys = []
    for field in dataclasses.fields(config):
        names, text = known.get(field.name, ((field.name,), ""))
        if names[0] != field.name:
            continue  # said with the first of those that share the description
        section, index = _section(hints[field.name])
        values = [_default(config, name, defaults) for name in names]
        if section is None:
            named = {f"{prefix}{n}": _text(v) for n, v in zip(names, values, strict=True)}
            keys.append(Key(named, text))
        else:
            inner = keys_of(section, f"{prefix}{field.name}{index}.", None if index else values[0])
            keys.append(Key({f"{prefix}{field.name}{index}": ""}, text, tuple(inner)))
    return keys


def descriptions(config: type) -> dict[str, tuple[tuple[str, ...], str]]:
    """Returns field → (the fields that share its description, description), base classes' too."""
    found = {}
    for cls in reversed(config.__mro__):
        for entry in _entries(cls.__dict__.get("__doc__") or ""):
            match = _ENTRY.fullmatch(entry)
            if match:
                names = tuple(match[1].split(", "))
                found |= {name: (names, " ".join(match[2].split())) for name in names}
    return found


def _entries(docstring: str) -> list[str]:
    """The entries of the section "Attributes:", each with the lines that continue it."""
    lines = inspect.cleandoc(docstring).splitlines()
    if "Attributes:" not in lines:
        return []
    section = []
    for line in lines[lines.index("Attributes:") + 1 :]:
        if line and not line.startswith(" "):
            break
        section.append(line)
    entries: list[str] = []
    for line in textwrap.dedent("\n".join(section)).splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += f"\n{line}"
        elif line:
            entries.append(line)
    return entries


def _section(hint: Any) -> tuple[type | None, str]:
    """(dataclass of a section, what stands for an index in its key) of a field's type."""
    if dataclasses.is_dataclass(hint):
        return hint, ""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(arguments[0]):
        return arguments[0], ".N"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((_section(a) for a in arguments if _section(a)[0]), (None, ""))
    return None, ""


def _default(config: type, name: str, defaults: Any) -> Any:
    """A field's value in `defaults`, or else its default; MISSING if it has none."""
    if defaults is not None and defaults is not dataclasses.MISSING:
        return getattr(defaults, name)
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _text(value: Any) -> str:
    """A default as one writes it after --config.KEY=."""
    if value is dataclasses.MISSING:
        return "required"
    return value if isinstance(value, str) and value else repr(value).replace("''", '""')


def _block(heading: str, keys: list[Key]) -> str:
    lines = [f"Keys of {heading}:"] if heading else []
    return "\n".join([*lines, *_lines(keys)])


def _lines(keys: list[Key] | tuple[Key, ...]) -> list[str]:
    lines = []
    for key in keys:
        lines += textwrap.wrap(
            f"{key.title}: {key.text}", WIDTH, initial_indent="  ", subsequent_indent="      ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        lines += _lines(key.inner)
    return lines
