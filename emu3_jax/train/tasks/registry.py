"""Tasks by name: the only module that lists all of them."""

import os
from collections.abc import Mapping
from typing import Any

from emu3_jax.config import ConfigError, named
from emu3_jax.train.task import Task
from emu3_jax.train.tasks.language.lora_task import with_lora

# Name → import path. A config may also name a class of its own by its path, "module:Class".
TASKS = {
    "pretrain": "emu3_jax.train.tasks.language.pretrain:PretrainTask",
    "dpo": "emu3_jax.train.tasks.language.dpo:DpoTask",
    "grpo": "emu3_jax.train.tasks.language.grpo:GrpoTask",
    "vision_tokenizer": "emu3_jax.train.tasks.vision.vision_tokenizer:VisionTokenizerTask",
}
LORA = "lora"  # the section that gives a task adapters


def find(name: Any) -> type[Task]:
    """Returns the task class of a name or an import path; ConfigError if there is none."""
    try:
        return named.find("task", name, TASKS)
    except ConfigError as error:
        raise ConfigError(f"config.task: {error}") from error


def find_for(config: Any) -> type[Task]:
    """Returns the class of a config: a mapping of stated values, or a resolved one.

    A section `lora` gives any task of a language model adapters. Errors as `find`.
    """
    stated = config if isinstance(config, Mapping) else vars(config)
    task = find(stated["task"])
    return task if stated.get(LORA) is None else with_lora(task)


def resolve(values: Mapping[str, Any], run_directory: os.PathLike | None = None) -> Any:
    """Returns the resolved config of the task that `values` name.

    Arguments, result and errors as `Task.resolve`.
    """
    if "task" not in values:
        raise ConfigError(f"config.task is missing; it is one of {', '.join(TASKS)}")
    return find_for(values).resolve(values, run_directory)


def make(config: Any, read_data: bool = True) -> Task:
    """Makes the task of a resolved config; `read_data` as in `Task.__init__`."""
    return find_for(config)(config, read_data)
