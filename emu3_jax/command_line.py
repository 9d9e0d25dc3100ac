"""What every command shares: flags, and one clear sentence when the user's input is wrong."""

import logging as python_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from emu3_jax import exit_codes, sharding, shipped
from emu3_jax.config import (
    ConfigError,
    apply_overrides,
    config_leaves,
    load_config,
    to_dataclass,
)
from emu3_jax.config import help as config_help
from emu3_jax.files import in_words
from emu3_jax.foreign import MissingPackageError

# The flags defined here belong to the command that defines them; its --help lists them.
flags.disclaim_key_flags()

CONFIG_PREFIX = "--config."
HELP = {"--help", "-help", "-h", "-?", "--helpshort"}


def define_config(help_text: str = "") -> None:
    """Defines `--config=NAME|FILE.py[:ARG]` and the overrides `--config.a.b=value`.

    After `run` has parsed the command line, flags.FLAGS.config is the locked ConfigDict with the
    overrides applied, or None if the flag was not given.
    """
    help_text = help_text or "Config; override keys with --config.a.b=value."
    names = ", ".join(shipped.config_names())
    flags.DEFINE_string("config", None, f"{help_text} A file, or a shipped one: {names}.")


def define_path(
    name: str, find: Callable[[str], str | os.PathLike], help_text: str
) -> flags.FlagHolder[str | None]:
    """Defines a flag whose value is the path that `find` returns for the text given.

    With a function of emu3_jax.shipped the flag accepts a path or the name of a shipped file.
    """
    return flags.DEFINE(_Finder(find), name, None, help_text)


class _Finder(flags.ArgumentParser):
    def __init__(self, find):
        self._find = find

    def parse(self, argument):
        return argument and os.fspath(self._find(argument))


def define_mesh() -> None:
    """Defines `--mesh=axis=size,…`; see `mesh`."""
    flags.DEFINE_string(
        "mesh", "", "Spread over devices, like data=2,tensor=4; default: one, if possible."
    )


def mesh() -> jax.sharding.Mesh:
    """The mesh of the flag. Default: the first device; with several processes, all devices.

    Raises:
      ValueError: the text is not a mesh, or the mesh does not match the devices present.
    """
    text = flags.FLAGS.mesh
    if not text:
        return sharding.make_mesh() if jax.process_count() > 1 else sharding.one_device()
    sizes = dict.fromkeys(sharding.AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise ValueError(f"--mesh must be like data=2,tensor=4, not {text!r}.")
        sizes[axis] = int(size)
    return sharding.make_mesh(sharding.MeshConfig(**sizes))


def run(
    main: Callable[..., None],
    usage: str | Callable[[ConfigDict | None], str],
    verbs: Sequence[str] = (),
) -> None:
    """Parses the flags and calls `main()`; an error of the input or storage ends in one line.

    --help prints `usage` and the flags; a function receives the config that the command line names,
    or None.

    A command with `verbs` takes one of them as its first word and calls `main(verb)`.

    These are ValueError, OSError and MissingPackageError; `exit_codes` tells which a restart may
    cure. All others keep their traceback, and --verbosity=1 shows the traceback of these as
    well. Ctrl-C exits with 130.
    """
    app.run(
        lambda words: _guarded(lambda: main(*words[1:])),
        flags_parser=lambda argv: _parse(argv, usage, verbs),
    )


def run_config(main: Callable[[Any], None], config: type, usage: str, example: str) -> None:
    """As `run`, for a command that finds what to do in --config: calls `main(config)`.

    Log lines are shown, and --help lists the keys.

    Args:
      main: takes the resolved config.
      config: its dataclass.
      usage: the command's docstring.
      example: name of a shipped config, for the sentence when --config is missing.
    """
    define_config("What to do; the keys are above.")

    def resolved() -> None:
        for name in (None, "absl"):
            python_logging.getLogger(name).setLevel(python_logging.INFO)
        if flags.FLAGS.config is None:
            raise ValueError(f"--config is needed, such as --config={example}; see --help")
        main(to_dataclass(config, flags.FLAGS.config))

    keys = config_help.listing({"": config})
    run(resolved, f"{usage}\nKeys of the config (default), set with --config.KEY=VALUE:\n{keys}\n")


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, in JAX_COMPILATION_CACHE_DIR or a user's cache."""
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    jax.config.update(
        "jax_compilation_cache_dir", directory or os.path.expanduser("~/.cache/emu3_jax/compiled")
    )


def _parse(
    argv: list[str], usage: str | Callable[[ConfigDict | None], str], verbs: Sequence[str]
) -> list[str]:
    """Parses with absl; config files and their overrides are separated and read here."""
    try:
        overrides = {}
        if "config" in flags.FLAGS:
            argv, overrides = _split_overrides(argv)
        if HELP & set(argv[1:]):
            _print_help(argv, overrides, usage)
            sys.exit(0)
        rest = flags.FLAGS(argv)
        if verbs and (len(rest) < 2 or rest[1] not in verbs):
            _fail(f"the first word must be one of: {', '.join(verbs)}; see --help")
        extra = rest[1 + bool(verbs) :]
        if extra:
            _fail(f"unexpected argument {extra[0]!r}; every option is written --name=value")
        if "config" in flags.FLAGS:
            _load_config(overrides)
    except (flags.Error, ConfigError) as error:
        _fail(str(error))
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # absl would set INFO
    return rest


def _print_help(
    argv: list[str], overrides: dict[str, str], usage: str | Callable[[ConfigDict | None], str]
) -> None:
    if callable(usage):
        named = [word for word in argv if word.startswith("--config=")]
        flags.FLAGS([argv[0], *named[-1:]])
        if named:
            _load_config(overrides)
        usage = usage(flags.FLAGS.config)
    try:
        print(f"{usage.strip()}\n\nFlags:{flags.FLAGS.main_module_help()}", flush=True)
    except BrokenPipeError:  # `--help | head` has read enough
        sys.stdout = open(os.devnull, "w")  # exiting would write into the pipe again


def _split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """--config.a.b=value arguments as {"a.b": "value"}, and all other arguments."""
    overrides, others = {}, []
    for argument in argv:
        if not argument.startswith(CONFIG_PREFIX):
            others.append(argument)
            continue
        key, equals, value = argument.removeprefix(CONFIG_PREFIX).partition("=")
        if not equals:
            raise ConfigError(f"{argument} needs a value, written {argument}=VALUE")
        overrides[key] = value
    return others, overrides


def _load_config(overrides: dict[str, str]) -> None:
    flag = flags.FLAGS["config"]
    if flag.value is None:
        if overrides:
            raise ConfigError(f"{CONFIG_PREFIX}{next(iter(overrides))} needs --config=FILE")
        return
    config = load_config(flag.value)
    apply_overrides(config, overrides)
    flag.value = config


def _guarded(main: Callable[[], None]) -> None:
    use_compilation_cache()
    try:
        main()
    except (ValueError, OSError, MissingPackageError) as error:
        logging.debug("the error below was raised here", exc_info=True)
        sentence = in_words(error)
        if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
            sentence = _with_source(sentence)
        _fail(sentence, exit_codes.of(error))
    except ImportError as error:
        if "gcsfs" not in str(error):  # etils imports it at the first use of a bucket
            raise
        _fail("a path in a bucket (gs://) needs the package gcsfs: pip install gcsfs")
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to continue.", file=sys.stderr)
        sys.exit(130)


def _with_source(sentence: str) -> str:
    """The sentence about a file, with the flag or key whose value is it, or a folder around it."""
    found = [("", "")]
    for name, value in flags.FLAGS.flag_values_dict().items():
        is_config = isinstance(value, ConfigDict)
        for key, path in (config_leaves(value.to_dict()) if is_config else {"": value}).items():
            if isinstance(path, str) and path.strip("./") and _names(sentence, path):
                found.append((path, f"config.{key}" if is_config else f"--{name}"))
    source = max(found, key=lambda one: len(one[0]))[1]
    said = not source or f"{re.split(r'[.-]', source)[-1]}=" in sentence or source in sentence
    return sentence if said else f"{sentence} (given by {source})"


def _names(sentence: str, path: str) -> bool:
    """Whether a sentence names a path, something in it, or a folder that it lies in."""
    # A bare word may stand in any sentence: it must be the beginning of this one.
    before = r"(?<![\w./-])" if "/" in path or "." in path else "^"
    if re.search(rf"{before}{re.escape(path)}(?![\w.-])", sentence):
        return True
    files = re.findall(r"[^\s:'\"]+/[^\s:'\"]+", sentence)
    return any(path.startswith(f"{file}/") for file in files)


def _fail(message: str, code: int = exit_codes.USER) -> NoReturn:
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
