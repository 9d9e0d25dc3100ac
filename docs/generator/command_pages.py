"""Pages of the reference: every command with its flags."""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from page_markdown import definition, escaped, page

# Heading → commands, in the order of the page; others come last.
GROUPS = {
    "Whole paths": ("quickstart", "post_training"),
    "Data": ("tokenize", "tokenize.on_ray", "tokenize.rate", "tokenize.reconstruct", "text.train",
             "preferences", "show"),
    "Models": ("train", "evaluate", "generate", "convert", "aot"),
    "Reports": ("report.compare", "report.tokenizer_report", "evaluate.tables",
                "quickstart.quickstart_report", "post_training.post_training_report"),
    "Shipped corpora": ("data.fluent_emoji", "data.emoji_prompts", "data.emoji_documents",
                        "data.questions.emoji", "data.questions.easy_vqa"),
}  # fmt: skip
# What absl adds to the help of such a flag.
REPEATED = ";\n    repeat this option to specify a list of values"
# Where the keys of --config are described.
CONFIGS = {
    "tokenize": ("tokenize",), "tokenize.on_ray": ("tokenize",), "tokenize.rate": ("rate",),
    "preferences": ("preferences",), "evaluate": ("evaluators",),
    "train": ("pretrain", "dpo", "grpo", "vision_tokenizer", "lora", "evaluators"),
    "aot": ("pretrain", "dpo", "grpo", "vision_tokenizer", "lora"),
}  # fmt: skip


def described() -> dict[str, dict]:
    """Command without "emu3_jax." → what command_flags.py says of it."""
    script = pathlib.Path(__file__).with_name("command_flags.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], check=True, capture_output=True, text=True
    )
    return {c["name"].removeprefix("emu3_jax."): c for c in json.loads(done.stdout)}


def problems(commands: Mapping[str, dict]) -> list[str]:
    """Commands that do not exist, or without a docstring; flags without a word of help."""
    found = [f"{name}: no such command" for name in _grouped() if name not in commands]
    for name, command in commands.items():
        if not command["usage"]:
            found.append(f"{name}: no docstring")
        found += [f"{name} {f['name']}: no help" for f in command["flags"] if not f["help"]]
    return found


def _grouped() -> list[str]:
    return [name for names in GROUPS.values() for name in names]


def pages(commands: Mapping[str, dict]) -> dict[str, str]:
    """File → Markdown of the page of each command, and of their list."""
    made = {f"commands/{name}.md": _page(name, about) for name, about in commands.items()}
    listed = ["Every command is `python -m emu3_jax.NAME`; options are written `--name=value`.\n"]
    others = tuple(name for name in commands if name not in _grouped())
    for heading, names in (GROUPS | ({"Others": others} if others else {})).items():
        listed.append(f"## {heading}\n")
        listed += [f"- [{name}]({name}.md): {_first_words(commands[name])}" for name in names]
        listed.append(f"\n{_toctree(names)}")
    made["commands/index.md"] = page("Commands", listed)
    return made


def _toctree(names: Sequence[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", *names, "```\n"])


def _first_words(command: dict) -> str:
    """The first sentence of the docstring; of one that begins with the command, of what follows."""
    first, *others = command["usage"].split("\n\n")
    first = others[0] if ": python -m" in first else first
    sentence = re.split(r"\.\s", f"{first}\n")[0]
    return escaped(" ".join(sentence.split(" Evaluators:")[0].split()))


def _page(name: str, about: dict) -> str:
    body = ["```text", about["usage"], "```\n"]
    if about["verbs"]:
        body.append(f"The first word is one of {', '.join(f'`{v}`' for v in about['verbs'])}.\n")
    if name in CONFIGS:
        links = ", ".join(f"[{config}](../configs/{config}.md)" for config in CONFIGS[name])
        body.append(f"Keys of `--config`: {links}.\n")
    body.append("## Flags\n" if about["flags"] else "")
    for flag in about["flags"]:
        said = "" if "repeated" in flag["help"] else " May be repeated."
        text = flag["help"].replace(REPEATED, said)
        body.append(definition([(flag["name"], _default(flag["default"]))], text))
    return page(name, body)


def _default(text: str | None) -> str:
    """A default as typed, without the path of this clone; "" for none."""
    text = "" if text in (None, "[]") else text.removeprefix("'").removesuffix("'")
    root = str(pathlib.Path(__file__).parents[2])
    return text.replace(f"{root}/", "")
