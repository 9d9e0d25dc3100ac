"""State dicts of torch.save, read without torch; files of torch itself are in perceptual.npz."""

import functools
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from paths import GOLDEN

from emu3_jax.interop.formats import torch_pickle

FORMATS = ("zip", "legacy")


@functools.cache
def _golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "perceptual.npz") as stored:
        return {
            name.removeprefix("torch_save/"): array
            for name, array in stored.items()
            if name.startswith("torch_save/")
        }


@pytest.mark.parametrize("kind", FORMATS)
def test_every_type_and_view(kind, tmp_path):
    file = tmp_path / "state.pth"
    file.write_bytes(_golden()[kind].tobytes())
    tensors = torch_pickle.read(file)
    types = {name: str(array.dtype) for name, array in tensors.items()}
    assert types == {
        "plain": "float32", "permuted": "float32", "part": "float32", "half": "float16",
        "brain": "bfloat16", "double": "float64", "count": "int64", "flags": "bool",
        "empty": "float32", "parameter": "float32",
    }  # fmt: skip
    for name, array in tensors.items():
        expected = _golden()[f"expected/{name}"]
        assert array.shape == expected.shape, name
        np.testing.assert_array_equal(array.astype(expected.dtype), expected, err_msg=name)
        assert array.flags.c_contiguous and array.flags.writeable


class _Call:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _zipped(file, pickled: bytes, compression=zipfile.ZIP_STORED, **storages: bytes):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key[1:]}", data)
    return file


def _legacy(file, pickled: bytes):
    head = (torch_pickle.LEGACY_MAGIC, torch_pickle.LEGACY_PROTOCOL, {"little_endian": True})
    file.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + pickled)
    return file


@pytest.mark.parametrize("write", [_zipped, _legacy])
def test_nothing_of_a_malicious_file_is_run(write, tmp_path):
    victim = tmp_path / "victim"
    for function, *arguments in (
        (os.mkdir, str(victim)), (eval, f"__import__('os').mkdir({str(victim)!r})"),
        (getattr, {}, "items"),
    ):  # fmt: skip
        for protocol in (0, 2, 4):
            pickled = pickle.dumps({"weight": _Call(function, *arguments)}, protocol)
            file = write(tmp_path / "evil.pth", pickled)
            with pytest.raises(
                ValueError, match=rf"evil.pth.*{function.__name__}.*nothing was run"
            ):
                torch_pickle.read(file)
            assert not victim.exists()
            if function is os.mkdir:  # and it would have run
                pickle.loads(pickled)
                victim.rmdir()


def test_a_file_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes of objects on the stack, which must not affect the next file."""
    evil = b"ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb."
    evil_class = b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsNsb."
    for pickled in (evil, evil_class):
        with pytest.raises(ValueError, match="evil.pth"):
            torch_pickle.read(_zipped(tmp_path / "evil.pth", pickled))
        test_every_type_and_view("zip", tmp_path)


def _tensor_pickle(
    storage="FloatStorage", numel=6, offset=0, shape=(2, 3), strides=(3, 1)
) -> bytes:
    """{"weight": a tensor on storage "0"} as torch pickles it, by opcodes."""

    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, 2)  # the one in Python, which lets opcodes be written between
    name = lambda module, name: b"c" + module + b"\n" + name + b"\n"  # noqa: E731
    write, save = stream.write, pickler.save
    write(b"\x80\x02}")
    save("weight")
    write(name(b"torch._utils", b"_rebuild_tensor_v2") + b"((")
    save("storage")
    write(name(b"torch", storage.encode()))
    save("0"), save("cpu"), save(numel)
    write(b"tQ")
    save(offset), save(shape), save(strides), save(False), save(None)
    write(b"tRs.")
    return stream.getvalue()


SIX = np.arange(6, dtype=np.float32).tobytes()


def test_tensors_by_hand(tmp_path):
    file = _zipped(tmp_path / "a.pth", _tensor_pickle(shape=(3, 2), strides=(1, 3)), _0=SIX)
    np.testing.assert_array_equal(torch_pickle.read(file)["weight"], [[0, 3], [1, 4], [2, 5]])


def test_a_checkpoint_gives_its_state_dict(tmp_path):
    inner = _tensor_pickle()[2:-1]  # without the protocol before and the stop after
    whole = b"\x80\x02}(U\x05epochK\x03U\nstate_dict" + inner + b"u."
    file = _zipped(tmp_path / "a.pth", whole, _0=SIX)
    assert torch_pickle.read(file).keys() == {"weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (2, 4)}, "reaches beyond its storage of 6 elements"),
        ({"offset": 1}, "reaches beyond its storage"),
        ({"shape": (10**12,), "strides": (0,)}, "reaches beyond its storage"),
        ({"offset": -1}, "no valid shape and strides"),
        ({"strides": (-3, 1)}, "no valid shape and strides"),
        ({"strides": (1,)}, "no valid shape and strides"),
        ({"numel": 7}, "has 24 bytes, expected 7 float32"),
        ({"storage": "ComplexFloatStorage"}, "torch.ComplexFloatStorage, which no tensor needs"),
    ],
)
def test_tensors_outside_their_storage(options, message, tmp_path):
    with pytest.raises(ValueError, match=rf"a.pth.*{message}"):
        torch_pickle.read(_zipped(tmp_path / "a.pth", _tensor_pickle(**options), _0=SIX))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short(kind, tmp_path):
    whole, file = _golden()[kind].tobytes(), tmp_path / "short.pth"
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="short.pth cannot be read as a state dict of torch"):
            torch_pickle.read(file)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (pickle.dumps([1, 2], 2), "holds a list, expected a dict of tensors"),
        (pickle.dumps({"epoch": 3}, 2), "entry 'epoch' is a int, expected tensors only"),
        (_tensor_pickle(), "archive/data/0 is missing"),
    ],
)
def test_other_contents(pickled, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        torch_pickle.read(_zipped(tmp_path / "a.pth", pickled))


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match="nowhere.pth cannot be read: No such file"):
        torch_pickle.read(tmp_path / "nowhere.pth")
    packed = _zipped(tmp_path / "a.pth", _tensor_pickle(), zipfile.ZIP_DEFLATED, _0=SIX)
    with pytest.raises(ValueError, match="compressed"):
        torch_pickle.read(packed)
    (tmp_path / "b.pth").write_bytes(b"a text, not a pickle")
    with pytest.raises(ValueError, match="b.pth cannot be read as a state dict"):
        torch_pickle.read(tmp_path / "b.pth")


def test_a_file_cannot_ask_for_far_more_memory_than_it_has_bytes(tmp_path, monkeypatch):
    """Many tensors on one storage, or entries of the zip that state more bytes than there are."""
    file = _zipped(tmp_path / "a.pth", _tensor_pickle(), _0=SIX)
    monkeypatch.setattr(torch_pickle, "MAX_SIZE_RATIO", 24 / file.stat().st_size)
    with pytest.raises(ValueError, match=r"a.pth.*entries take \d+ bytes, more than the limit"):
        torch_pickle.read(file)
    file = _zipped(tmp_path / "b.pth", _shared(100), _0=bytes(4_000))
    monkeypatch.setattr(torch_pickle, "MAX_SIZE_RATIO", 4)
    with pytest.raises(ValueError, match=r"b.pth.*tensors take \d+ bytes, more than the limit"):
        torch_pickle.read(file)


def _shared(count: int) -> bytes:
    """A dict of tensors of 1,000 elements, all on storage "0"."""
    one = _tensor_pickle(numel=1000, shape=(1000,), strides=(1,))
    body = one[one.index(b"ctorch._utils") : -2]  # what makes the tensor
    names = (f"S'{number}'\n".encode() for number in range(count))
    return b"\x80\x02}" + b"".join(name + body + b"s" for name in names) + b"."
