"""The flags of every command as JSON: python docs/generator/command_flags.py

A command defines its flags while it is imported as __main__, and two commands may define the same
name. So each is imported in a process of its own, forked from one that has loaded JAX.
"""

import argparse
import ast
import json
import multiprocessing
import pathlib
import runpy
import sys

from absl import flags

import emu3_jax
from emu3_jax import command_line

PACKAGE = pathlib.Path(emu3_jax.__file__).parent


class _Described(BaseException):
    """Ends a command in place of its work; no command catches it."""


def commands() -> list[str]:
    """The modules that run as python -m MODULE, in alphabetical order."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__main__"))
    return sorted(found)


def _source(module: str) -> pathlib.Path:
    path = PACKAGE.parent / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def describe(module: str) -> dict:
    """One command.

    Returns:
      name; usage, its docstring; verbs, of which the first word is one; config, the import path of
      the dataclass of --config if it has one alone; flags: name, default (None: none), help.
    """
    found: dict = {"name": module, "verbs": [], "config": "", "flags": []}

    def run(main, usage, verbs=()):
        found["verbs"] = list(verbs)
        found["flags"] = _absl_flags()
        raise _Described

    def run_config(main, config, usage, example):
        command_line.define_config("What to do; its keys have a page of their own.")
        found["config"] = f"{config.__module__}:{config.__qualname__}"
        run(main, usage)

    def parse_args(parser, arguments=None, namespace=None):
        found["flags"] = _argparse_flags(parser)
        raise _Described

    command_line.run, command_line.run_config = run, run_config
    argparse.ArgumentParser.parse_args = parse_args
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except _Described:
        found["usage"] = ast.get_docstring(ast.parse(_source(module).read_text()))
    return found


def _absl_flags() -> list[dict]:
    """The flags that the module defines itself or by the functions of `command_line`."""
    return [
        {"name": f"--{flag.name}", "default": flag.default_as_str, "help": flag.help or ""}
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    ]


def _argparse_flags(parser: argparse.ArgumentParser) -> list[dict]:
    found = []
    for action in parser._actions:
        if action.dest == "help":
            continue
        about = {**vars(action), "prog": parser.prog}
        default = None if action.default in (None, False) else str(action.default)
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        found.append({"name": name, "default": default, "help": (action.help or "") % about})
    return found


def main() -> None:
    """Prints the list of all commands."""
    for module in ("generate.job", "evaluate.registry", "tokenize.run", "train.weights"):
        __import__(f"emu3_jax.{module}")
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(pool.map(describe, commands(), chunksize=1)))


if __name__ == "__main__":
    main()
