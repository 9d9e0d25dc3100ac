"""A stage of a pipeline: one public command, what it reads and what it writes."""

import dataclasses
import pathlib
from collections.abc import Sequence

from emu3_jax import shipped
from emu3_jax.config import load_config


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
      name: names its marker and its log.
      title: for the reader.
      command: arguments of the Python interpreter: ("-m", "emu3_jax.tokenize", ...).
      after: names of stages whose results it reads.
      inputs: other files and folders whose content decides the result.
      settings: what else decides it, such as a resolved config.
      outputs: files and folders that it writes. All must exist for the stage to count as done. All
        are removed before it runs again, unless it was only stopped and is `resumable`.
      resumable: the command itself continues what it began before a stop.
      interrupt_at: SIGTERM is sent once the process has logged this step; 0: never.
      devices: virtual CPU devices.
    """

    name: str
    title: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    inputs: tuple[pathlib.Path, ...] = ()
    settings: str = ""
    outputs: tuple[pathlib.Path, ...] = ()
    resumable: bool = False
    interrupt_at: int = 0
    devices: int = 1

    def shown(self) -> str:
        """The command as typed in a shell."""
        return " \\\n  ".join(_grouped(("python", *self.command)))


def _grouped(words: Sequence[str]) -> list[str]:
    """The interpreter and module on the first line, then one option per line."""
    options = [_quoted(word) for word in words[3:]]
    return [" ".join(words[:3]), *options]


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    return f'{name}{equals}"{value}"' if " " in value else word


def assets(*paths: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Where files that come with the project are; paths that do not exist are unchanged."""
    return tuple(pathlib.Path(shipped.asset(path)) for path in paths)


def resolved(config: str) -> str:
    """A config as text for `Stage.settings`, so that a change in a file it imports counts too."""
    return load_config(config).to_json_best_effort(sort_keys=True)
