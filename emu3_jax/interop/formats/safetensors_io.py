"""Weights on disk: one safetensors file, or several with an index, read tensor by tensor.

The hub serves both. Files are written under temporary names and then renamed, the index last, so
that a directory never holds half of a model under the final names.
"""

import contextlib
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from emu3_jax import files

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"  # of low-rank adapters, see language.peft
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
SHARD_BYTES = 5 * 10**9  # as in the released checkpoints

# Types of weights in a file; SAME keeps the type of every tensor.
SAME = "same"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_TYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def model_type(path: str | os.PathLike) -> str | None:
    """The kind of model that a directory's config.json states; ValueError if there is none."""
    return files.read_json(pathlib.Path(path) / CONFIG_FILE).get("model_type")


def check_dtype(dtype: str) -> None:
    """ValueError if it is neither SAME nor a name in DTYPES."""
    if dtype != SAME and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, {SAME}, found {dtype!r}")


def as_type(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in one of DTYPES, or unchanged for SAME."""
    return array if dtype == SAME else array.astype(DTYPES[dtype])


class Tensors:
    """The tensors of a directory; only names and shapes are in memory.

    Raises:
        ValueError: no weights, or a file that is not a safetensors file; names it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._where: dict[str, pathlib.Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        for file in self._files():
            with _opened(file) as tensors:
                for name in tensors.keys():
                    self._where[name] = file
                    part = tensors.get_slice(name)
                    self._shapes[name] = tuple(part.get_shape())
                    self._types[name] = part.get_dtype()

    def _files(self) -> list[pathlib.Path]:
        index = self.path / INDEX_FILE
        if index.exists():
            names = sorted(set(files.read_json(index).get("weight_map", {}).values()))
            return [files.inside(self.path, name) for name in names]
        return [self.path / WEIGHTS_FILE]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all tensors."""
        return self._shapes

    def type_name(self, name: str) -> str:
        """The type a tensor is stored in, as DTYPES calls it."""
        return _TYPE_NAMES.get(self._types[name], self._types[name])

    def read(self, name: str) -> np.ndarray:
        """One tensor in the type it is stored in.

        The file is closed afterwards: an open file is memory-mapped, and every part read would
        count as memory.
        """
        with _opened(self._where[name]) as tensors:
            return tensors.get_tensor(name)

    def check(
        self, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()
    ) -> None:
        """ValueError that lists every missing, unexpected and mis-shaped tensor at once.

        Tensors named in `optional` may be present or absent, in any shape.
        """
        problems = differences(self._shapes, expected, optional)
        if problems:
            raise ValueError(f"weights in {self.path} do not fit: {'; '.join(problems)}")


def read_file(file: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file; ValueError naming the file if it is none."""
    with _opened(file) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}


def differences(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: Collection[str] = (),
) -> list[str]:
    """Every array that is missing, unexpected or of another shape; see `Tensors.check`."""
    known = {*expected, *optional}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in known]
    return problems + [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]


@contextlib.contextmanager
def _opened(file: pathlib.Path):
    try:
        with safetensors.safe_open(file, "np") as tensors:
            yield tensors
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def write_file(
    file: pathlib.Path, tensors: dict[str, np.ndarray], where: str | os.PathLike
) -> None:
    """Writes one safetensors file; an OSError, such as for a full disk, names `where`."""
    file.touch()
    mode = file.stat().st_mode
    try:
        safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(mode)  # safetensors lets the owner alone read it
    except safetensors.SafetensorError as error:  # also for errors of the operating system
        raise OSError(f"{where} cannot be written: {error}") from error


def write_tensors(
    path: str | os.PathLike,
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes (name, array) pairs to a directory; at most `shard_bytes` per file and in memory."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    written: list[tuple[pathlib.Path, list[str]]] = []
    shard: dict[str, np.ndarray] = {}
    total = size = 0

    def flush():
        temporary = files.temporary_name(path / WEIGHTS_FILE)
        written.append((temporary, list(shard)))
        write_file(temporary, shard, where=path)

    try:
        for name, array in tensors:
            if shard and size + array.nbytes > shard_bytes:
                flush()
                shard, size = {}, 0
            shard[name] = np.asarray(array, order="C")  # keeps scalars
            size += array.nbytes
            total += array.nbytes
        flush()
        _rename(path, written, total)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def _rename(path: pathlib.Path, written: list[tuple[pathlib.Path, list[str]]], total: int) -> None:
    if len(written) == 1:
        os.replace(written[0][0], path / WEIGHTS_FILE)
        (path / INDEX_FILE).unlink(missing_ok=True)
        _remove_shards(path, keep=())
        return
    weight_map = {}
    for i, (temporary, names) in enumerate(written):
        file = f"model-{i + 1:05d}-of-{len(written):05d}.safetensors"
        os.replace(temporary, path / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.write_json(path / INDEX_FILE, index)
    (path / WEIGHTS_FILE).unlink(missing_ok=True)
    _remove_shards(path, keep=set(weight_map.values()))


def _remove_shards(path: pathlib.Path, keep: Collection[str]) -> None:
    """Removes the files of an earlier model with another number of files."""
    for file in path.glob(SHARDS):
        if file.name not in keep:
            file.unlink()


@contextlib.contextmanager
def replacing_model(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """As `files.replacing`, but replaces only an earlier model.

    Raises:
      ValueError: `path` exists and is not a model without subfolders, such as a run or a folder of
        other files, which must not be removed.
    """
    path = pathlib.Path(path)
    if path.exists() and not _is_replaceable(path):
        raise ValueError(f"{path} exists and is not an exported model; name a new directory")
    with files.replacing(path) as folder:
        yield folder


def _is_replaceable(path: pathlib.Path) -> bool:
    if not path.is_dir():
        return False
    children = list(path.iterdir())
    if not children:
        return True
    names = {child.name for child in children if child.is_file()}
    weights = any(name.endswith(".safetensors") for name in names)
    stated = CONFIG_FILE in names or ADAPTER_CONFIG_FILE in names
    return weights and stated and len(names) == len(children)
