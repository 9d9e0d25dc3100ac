"""Shipped files by name: configs, small models, text tokenizer, corpus.

In a clone these files are in the top-level folders configs/ and assets/, in an installed package
in emu3_jax/_shipped/. An existing path takes precedence over a name. `configs/FILE.py` and
`assets/NAME` are found from every working directory.
"""

import contextlib
import difflib
import importlib.abc
import importlib.machinery
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

_PACKAGE = pathlib.Path(__file__).parent
_INSTALLED = _PACKAGE / "_shipped"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
CONFIGS, ASSETS = ROOT / "configs", ROOT / "assets"

# "nano" stands for the asset with this prefix and suffix.
LANGUAGE_MODEL = ("language model", "transformer_", "")
VISION_TOKENIZER = ("vision tokenizer", "vision_tokenizer_", "")
TEXT_TOKENIZER = ("text tokenizer", "text_", ".model")

PathLike = str | os.PathLike


class UnknownNameError(ValueError):
    """A name that is neither a path nor a shipped file."""


def asset(path: PathLike) -> PathLike:
    """`path` if it exists, else the shipped asset `assets/NAME`; `path` unchanged if neither."""
    name = os.fspath(path).removeprefix("assets/")
    if not name or _exists(path) or not (ASSETS / name).exists():
        return path
    return ASSETS / name


def language_model(path: PathLike) -> PathLike:
    """A directory of a language model: a path, or the name of a shipped one, such as "nano".

    Raises:
      UnknownNameError: a single word that is neither.
    """
    return _named(path, *LANGUAGE_MODEL)


def vision_tokenizer(path: PathLike) -> PathLike:
    """A directory of a vision tokenizer; otherwise as `language_model`."""
    return _named(path, *VISION_TOKENIZER)


def text_tokenizer(path: PathLike) -> PathLike:
    """A file of a text tokenizer; otherwise as `language_model`."""
    return _named(path, *TEXT_TOKENIZER)


def _named(path: PathLike, kind: str, prefix: str, suffix: str) -> PathLike:
    found = asset(path)
    text = os.fspath(found)
    if _exists(found) or not re.fullmatch(r"[\w-]+", text):
        return found  # if it does not exist, its reader raises the error
    names = [p.name[len(prefix) :].removesuffix(suffix) for p in ASSETS.glob(f"{prefix}*{suffix}")]
    if text not in names:
        raise UnknownNameError(
            f"{text!r} is neither a path nor the name of a shipped {kind}; {_hint(text, names)}"
        )
    return ASSETS / f"{prefix}{text}{suffix}"


def config_names() -> list[str]:
    """Names of the shipped configs: "transformer_nano", "ablations/no_dropout", …"""
    files = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.py"))
    return sorted(file.with_suffix("").as_posix() for file in files)


def config_file(path: PathLike) -> pathlib.Path:
    """A config file: a path, or the name of a shipped one, such as "transformer_nano".

    Raises:
      UnknownNameError: neither; names the nearest shipped config, or all of them.
    """
    file = pathlib.Path(path)
    if file.is_file():
        return file
    name = os.fspath(path).removeprefix("configs/").removesuffix(".py")
    names = config_names()
    if name in names:
        return CONFIGS / f"{name}.py"
    if file.suffix == ".py" and name == os.fspath(path).removesuffix(".py"):
        raise UnknownNameError(f"config file {path} does not exist")
    raise UnknownNameError(
        f"{os.fspath(path)!r} is neither a file nor the name of a shipped config; "
        f"{_hint(name, names)}"
    )


def _exists(path: PathLike) -> bool:
    return "://" in os.fspath(path) or os.path.exists(path)


def _hint(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"shipped: {', '.join(sorted(names))}"


@contextlib.contextmanager
def importable_configs(file: PathLike) -> Iterator[None]:
    """Makes `from configs import transformer_nano` work in the config `file`, wherever it is.

    A shipped file imports the shipped configs. Other files first import from a package or folder
    `configs` of their own. `sys.modules` is restored.
    """
    is_shipped = pathlib.Path(file).resolve().is_relative_to(CONFIGS.resolve())
    kept = _forget_configs()
    sys.meta_path.insert(0 if is_shipped else len(sys.meta_path), _ShippedConfigs)
    try:
        yield
    finally:
        sys.meta_path.remove(_ShippedConfigs)
        _forget_configs()
        sys.modules.update(kept)


def _forget_configs() -> dict:
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    return {name: sys.modules.pop(name) for name in names}


class _ShippedConfigs(importlib.abc.MetaPathFinder):
    """Finds `configs` and `configs.NAME` among the shipped files. No package of that name is
    installed, since it could hide the user's own."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        first, *rest = fullname.split(".")
        if first != "configs":
            return None
        place = CONFIGS.joinpath(*rest)
        if place.is_dir():
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(place)]
            return spec
        return importlib.machinery.PathFinder.find_spec(fullname, [str(place.parent)])
