"""Pages of the reference: every key of every config, from the dataclasses and their docstrings."""

from collections.abc import Iterator, Mapping, Sequence

from page_markdown import definition, page

from emu3_jax.config.help import Key, keys_of
from emu3_jax.evaluate.registry import EVALUATORS
from emu3_jax.models.language.lora import LoraConfig
from emu3_jax.preferences.preferences_config import PreferencesConfig
from emu3_jax.scorers import registry as scorers
from emu3_jax.tokenize.rate import RateConfig
from emu3_jax.tokenize.tokenize_config import TokenizeConfig
from emu3_jax.train.tasks import registry as tasks

# What stands above the keys of a page; a command reads the first two kinds.
TASK = (
    '`python -m emu3_jax.train --config=FILE` with `task="{name}"` in the file. On the command '
    "line a key is set by `--config.KEY=VALUE`. Sections of a list are numbered from N = 0, and "
    "are those that the file has."
)
READ = "`python -m emu3_jax.{command} --config=FILE`; a key is set by `--config.KEY=VALUE`."
COMMANDS = {
    "tokenize": (TokenizeConfig, "tokenize"),
    "preferences": (PreferencesConfig, "preferences"),
    "rate": (RateConfig, "tokenize.rate"),
}
LORA = "The section `lora` gives any task of a language model adapters, and freezes all else."
EVALUATOR = (
    "Entries of the section `evaluation` of a training config, and of `python -m emu3_jax.evaluate "
    "--config=FILE`: `dict(evaluator=NAME, every=STEPS, …)` with these keys."
)
SCORER = "Entries of `scorers`: `dict(scorer=NAME, …)` with these keys."


def found() -> dict[str, tuple[str, Mapping[str, Sequence[Key]]]]:
    """Page → (what stands first, heading → keys); "" is the heading of a page without any."""
    made = {
        name: (TASK.format(name=name), {"": keys_of(tasks.find(name).Config)})
        for name in tasks.TASKS
    }
    made["lora"] = (LORA, {"": keys_of(LoraConfig, f"{tasks.LORA}.")})
    for name, (config, command) in COMMANDS.items():
        made[name] = (READ.format(command=command), {"": keys_of(config)})
    made["evaluators"] = (EVALUATOR, {name: keys_of(cls) for name, cls in EVALUATORS.items()})
    classes = {name: keys_of(scorers.find(name)) for name in scorers.SCORERS}
    made["scorers"] = (SCORER, classes)
    return made


def problems() -> list[str]:
    """Keys without a description."""
    everything = [key for _, groups in found().values() for keys in groups.values() for key in keys]
    return [f"{key.title}: no description" for key in _flat(everything) if not key.text]


def pages() -> dict[str, str]:
    """File → Markdown of each page, and of their list."""
    made = {}
    for name, (first, groups) in found().items():
        body = [f"{first}\n"]
        for heading, keys in groups.items():
            body += [f"## {heading}\n"] if heading else []
            body += _blocks(keys, "###" if heading else "##")
        made[f"configs/{name}.md"] = page(name, body)
    listed = [
        "Every field with its default and unit. A config file is Python and states only what "
        "differs; `--print_config` prints all of it.\n",
        "## Training\n", "```{toctree}", *tasks.TASKS, "lora", "evaluators", "scorers", "```\n",
        "## Data\n", "```{toctree}", *COMMANDS, "```\n",
    ]  # fmt: skip
    made["configs/index.md"] = page("Configs", listed)
    return made


def _blocks(keys: Sequence[Key], level: str) -> Iterator[str]:
    """Plain keys first, then each section under a heading of its own."""
    for key in keys:
        if not key.inner:
            yield definition(key.defaults.items(), key.text)
    for key in keys:
        if key.inner:
            (name,) = key.defaults
            yield f"{level} {name}\n\n{definition([], key.text).removeprefix(chr(10) + ': ')}"
            yield from _blocks(key.inner, level)


def _flat(keys: Sequence[Key]) -> Iterator[Key]:
    for key in keys:
        yield key
        yield from _flat(key.inner)
