"""One line per item: what was asked and answered, kept while a benchmark runs.

`<name>_run.json` states what the answers depend on. A run that finds one continues after the
answers that are there, or refuses if it would answer under other conditions. An evaluation during
training, whose folder is its own, then begins anew.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from emu3_jax.files import AppendedLines, read_json, read_lines, write_atomically, write_json


class ItemFile:
    """The items of one benchmark in a folder; no file is written without a folder.

    Attributes:
      items: id → line, of this run and of those before.
    """

    def __init__(
        self,
        folder: epath.Path | None,
        name: str,
        conditions: Mapping[str, Any],
        replaces: bool = False,
    ):
        """Reads what is there.

        Args:
          folder: of the results.
          name: of the evaluator.
          conditions: what the answers depend on; JSON.
          replaces: answers under other conditions are thrown away, not refused.

        Raises:
          ValueError: the folder has answers that were given under other conditions.
        """
        self._folder, self._items_name = folder, f"{name}_items.jsonl"
        self._conditions, self._conditions_name = dict(conditions), f"{name}_run.json"
        self.items: dict[str, dict[str, Any]] = {}
        self._lines: AppendedLines | None = None
        if folder is None or not (folder / self._conditions_name).exists():
            return
        other = self._other(read_json(folder / self._conditions_name))
        if other and not replaces:
            raise ValueError(
                f"{folder / self._items_name} has answers given with {other}; choose another "
                "folder, or delete that file"
            )
        if other:
            (folder / self._items_name).unlink(missing_ok=True)
        elif (folder / self._items_name).exists():
            self.items = {line["id"]: line for line in read_lines(folder, self._items_name)}

    def _other(self, stored: Mapping[str, Any]) -> str:
        """The first condition that is not as stored, in words; "" if there is none."""
        plain = json.loads(json.dumps(self._conditions))
        for key in dict.fromkeys((*plain, *stored)):
            if plain.get(key) != stored.get(key):
                return f"{key} {stored.get(key)!r}, not {plain.get(key)!r}"
        return ""

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Keeps lines {"id": …}; they are on the disk when this returns."""
        for line in lines:
            if self._folder is not None:
                if self._lines is None:
                    write_json(self._folder / self._conditions_name, self._conditions)
                    self._lines = AppendedLines(self._folder, self._items_name)
                self._lines.append(line)
            self.items[line["id"]] = line

    def finish(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replaces the file by these lines: all items in order, with their scores."""
        if self._lines is not None:
            self._lines.close()
        if self._folder is not None:
            content = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self._folder / self._items_name, content)
