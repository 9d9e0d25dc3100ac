"""A directory that is written whole or not at all, and takes the place of an earlier one."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from emu3_jax.interop.safetensors_io import CONFIG_FILE


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty folder that becomes `path` when the block ends without an error.

    What `path` was before is read in the block as it was, and removed at the end.

    Raises:
      ValueError: `path` is something else than a model without folders in it, which nobody wants
        removed (a run, or a folder with all sorts of things).
    """
    path = pathlib.Path(path).absolute()
    if path.exists() and not _is_replaceable(path):
        raise ValueError(f"{path} is there and is no exported model; name a new directory")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_replaceable(path: pathlib.Path) -> bool:
    if not path.is_dir():
        return False
    children = list(path.iterdir())
    if not children:
        return True
    names = {child.name for child in children if child.is_file()}
    weights = any(name.endswith(".safetensors") for name in names)
    return weights and CONFIG_FILE in names and len(names) == len(children)
