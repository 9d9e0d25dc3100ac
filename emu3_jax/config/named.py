"""What configs name: tasks, evaluators and scorers, by name or by the import path of your own."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from emu3_jax.config.values import ConfigError

T = TypeVar("T")


def find(kind: str, name: Any, known: Mapping[str, Any]) -> Any:
    """Returns what a name, or an import path "module:attribute", stands for.

    Args:
      kind: what it is, for messages: "task".
      name: as a config states it.
      known: name → the object, or its import path.

    Raises:
      ConfigError: with the nearest name, if there is one.
    """
    found = known.get(name, name) if isinstance(name, str) else ""
    if not isinstance(found, str):
        return found
    module, colon, attribute = found.partition(":")
    if not colon:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"there is no {kind} {name!r}{hint}; known: {', '.join(known)}, or the import path of "
            "your own, module:Class"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name!r} cannot be imported: {error}") from error


def make_entries(
    section: str,
    kind: str,
    entries: Any,
    known: Iterable[str],
    make: Callable[[Any, dict[str, Any], str], T],
    where: Callable[[int], str] | None = None,
) -> tuple[T, ...]:
    """Makes what a section of a config lists, in order.

    Args:
      section: name of the section.
      kind: the key of an entry whose value is a name or an import path.
      entries: what the section holds: a sequence of mappings.
      known: names, for messages.
      make: (name, the other keys of the entry, where it is) → object with a `name`.
      where: index → name of the entry in messages; default: "section[index]".

    Raises:
      ConfigError: names the entry: it is no mapping, has no `kind`, or two have one name.
    """
    where = where or (lambda index: f"{section}[{index}]")
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ConfigError(
            f"{section} must be a list of entries, dict({kind}=NAME, …), got {entries!r}"
        )
    made: list[T] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or kind not in entry:
            raise ConfigError(
                f"{where(index)} must be a section with the key {kind}, one of {', '.join(known)}, "
                f"got {entry!r}"
            )
        values = dict(entry)
        made.append(make(values.pop(kind), values, where(index)))
        if made[-1].name in [other.name for other in made[:-1]]:
            raise ConfigError(
                f"{where(index)}.name: there are two entries of the name {made[-1].name!r}; give "
                "each a name of its own"
            )
    return tuple(made)
