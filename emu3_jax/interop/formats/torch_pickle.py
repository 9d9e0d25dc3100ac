"""Reads state dicts written by torch.save, without torch and without running code of the file.

A pickle names functions to call. Here these names are looked up in a short table of what tensors
need (`_names`) and never imported; a file that names anything else raises an error.

Two formats. Since torch 1.6: a zip with <folder>/data.pkl and one <folder>/data/<key> per storage.
Before: four pickles one after another (magic number, protocol, machine, objects), the list of
storage keys, and for each key its length and bytes.
"""

import io
import math
import os
import pathlib
import pickle
import zipfile
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

# torch/serialization.py
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Tensors that share a storage become arrays of their own. Tied weights double the bytes of a file;
# entries of a zip that overlap, or a storage named again and again, could take any number of them.
MAX_SIZE_RATIO = 4

# Storage classes of torch and their elements, little endian.
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    """A run of elements in the file: its key, their type and number."""

    key: str
    dtype: np.dtype
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage, counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state dict: name -> array, each in the type it is stored in.

    A checkpoint that has the state dict under the key "state_dict" gives that one.

    Views with strides are copied into arrays of their own; an expanded tensor, which has more
    elements than its storage, is refused.

    Raises:
      ValueError: the file does not exist, is not from torch.save, is truncated, names anything but
        tensors, or is not a dict of tensors; names the file.
    """
    file = pathlib.Path(file)
    try:
        with file.open("rb") as stream:
            read_one = _read_zip if zipfile.is_zipfile(stream) else _read_legacy
            stream.seek(0)
            return read_one(stream)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle can fail in any way
        reason = str(error) or type(error).__name__
        raise ValueError(f"{file} cannot be read as a state dict of torch: {reason}") from error


def _read_zip(stream: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(stream) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("the zip holds no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        _check_size(sum(entry.file_size for entry in archive.infolist()), stream, "entries")
        if order in archive.namelist() and _entry(archive, order) != b"little":
            raise ValueError("it was written by a big-endian machine")
        tensors = _tensors_of(_unpickled(io.BytesIO(_entry(archive, pickles[0]))))
        stored = {}
        for storage in {tensor.storage for tensor in tensors.values()}:
            data = _entry(archive, f"{folder}data/{storage.key}")
            stored[storage.key] = _elements(storage, data)
    return _views(tensors, stored, stream)


def _check_size(size: int, stream: BinaryIO, what: str) -> None:
    """ValueError if what a file states would take `MAX_SIZE_RATIO` times its own bytes."""
    limit = MAX_SIZE_RATIO * os.fstat(stream.fileno()).st_size
    if size > limit:
        raise ValueError(f"its {what} take {size} bytes, more than the limit of {limit}")


def _views(
    tensors: dict[str, _Tensor], stored: dict[str, np.ndarray], stream: BinaryIO
) -> dict[str, np.ndarray]:
    """The arrays of all tensors; a file may not ask for far more memory than it has bytes."""
    arrays: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors.items():
        arrays[name] = _view(tensor, stored, name)  # no larger than its storage
        size += arrays[name].nbytes
        _check_size(size, stream, "tensors")
    return arrays


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Bytes of a file in the zip; torch never compresses them, a zip bomb does."""
    if name not in archive.namelist():
        raise ValueError(f"{name} is missing in it")
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} in it is compressed, which torch does not do")
    return archive.read(name)


def _read_legacy(stream: BinaryIO) -> dict[str, np.ndarray]:
    size = os.fstat(stream.fileno()).st_size
    if _unpickled(stream) != LEGACY_MAGIC or _unpickled(stream) != LEGACY_PROTOCOL:
        raise ValueError("it does not begin like a file of torch.save")
    if not _unpickled(stream)["little_endian"]:
        raise ValueError("it was written by a big-endian machine")
    tensors = _tensors_of(_unpickled(stream))
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    stored = {}
    for key in _unpickled(stream):
        if key not in storages:
            raise ValueError(f"it holds storage {key}, which no tensor uses")
        count = int.from_bytes(stream.read(8), "little")
        bytes_ = count * storages[key].dtype.itemsize
        if bytes_ > size - stream.tell():
            raise ValueError("it ends too early")
        stored[key] = _elements(storages[key], stream.read(bytes_))
    return _views(tensors, stored, stream)


def _elements(storage: _Storage, data: bytes) -> np.ndarray:
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key} has {len(data)} bytes, expected {storage.numel} {storage.dtype}"
        )
    return np.frombuffer(data, storage.dtype)


def _tensors_of(value) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected a dict of tensors")
    if isinstance(value.get("state_dict"), dict):  # beside an epoch, a name, ...
        value = value["state_dict"]
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(
                f"its entry {name!r} is a {type(tensor).__name__}, expected tensors only"
            )
    return dict(value)


def _view(tensor: _Tensor, stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A copy of the tensor's elements, after a check that all of them lie in the storage."""
    if tensor.storage.key not in stored:
        raise ValueError(f"the storage of {name} is missing in it")
    elements = stored[tensor.storage.key]
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or min(numbers) < 0:
        raise ValueError(f"{name} has no valid shape and strides")
    size = math.prod(tensor.shape)
    if size == 0:
        return np.zeros(tensor.shape, elements.dtype)
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if last >= len(elements) or size > len(elements):
        raise ValueError(f"{name} reaches beyond its storage of {len(elements)} elements")
    strides = [stride * elements.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides)
    return np.array(view, order="C")


def _unpickled(stream: BinaryIO):
    return _Unpickler(stream).load()


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, numbers, strings and the objects of `_names`; nothing else."""

    def __init__(self, stream: BinaryIO):
        super().__init__(stream, encoding="utf-8")  # keys of files from Python 2
        self.names = _names()

    def find_class(self, module: str, name: str):
        """The object module.name of a pickle; ValueError if a tensor does not need it."""
        if (module, name) not in self.names:
            raise ValueError(f"it names {module}.{name}, which no tensor needs; nothing was run")
        return self.names[module, name]

    def persistent_load(self, pid) -> _Storage:
        """('storage', class, key, device, elements, …) -> the storage; further items are unused."""
        kind, name, key, _, numel, *view = pid
        if kind != "storage" or name not in STORAGES or any(view):
            raise ValueError("it holds a storage of a kind that state dicts do not have")
        return _Storage(str(key), STORAGES[name], int(numel))


def _names() -> dict[tuple[str, str], object]:
    """Everything that a file may name, made for each file: a pickle can also set attributes."""

    class StateDict(dict):
        """A dict subclass, since torch sets attributes on it (the versions of modules)."""

    def tensor(storage, offset, shape, strides, *_) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("it makes a tensor of something that is not a storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def parameter(data, *_):
        return data

    names = {("torch", name): name for name in STORAGES}
    return names | {
        ("collections", "OrderedDict"): StateDict,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
    }
