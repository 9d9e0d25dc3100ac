"""Damaged tars: readable examples are used, and the rest is one item with a reason."""

import bz2
import errno
import gzip
import io
import json
import lzma
import re
import tarfile

import pytest

from emu3_jax import exit_codes
from emu3_jax.data.sources import SourceError, open_source
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.tokenize.run import TokenizeError, tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

EXAMPLES = 8


def tar() -> bytes:
    """Examples of two members each, a text and a json; each member takes two blocks of 512."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for i in range(EXAMPLES):
            for ending, content in (("txt", b"a cat"), ("json", b'{"n": 1}')):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read(tmp_path, content):
    """The keys of a tar's examples, and the error they end in."""
    (tmp_path / "0.tar").write_bytes(content)
    keys = []
    try:
        for item in open_source("webdataset:0.tar", tmp_path).items(0):
            keys.append(item.key)
            assert (item.text, item.attributes) == ("a cat", {"n": 1})
    except SourceError as error:
        return keys, str(error)
    return keys, ""


def at(example, member=0, block=0):
    """Offset of a member's block in the tar."""
    return 512 * (4 * example + 2 * member + block)


@pytest.mark.parametrize(
    "stop, readable, reason",
    [
        (at(3) + 100, 2, "from the example '2' on .*truncated header"),
        (at(3, 0, 1) + 2, 2, "from the example '2' on .*unexpected end of data"),
        (at(3, 1), 3, "from the example '3' on .*stops before its end marker"),
        (at(3, 1, 1) + 1, 3, "from the example '3' on .*unexpected end of data"),
        (at(3), 2, "from the example '2' on .*stops before its end marker"),
        (0, 0, r"0.tar: cannot be read as a tar file \(file could not be opened"),
    ],
)
def test_a_truncated_tar(stop, readable, reason, tmp_path):
    keys, error = read(tmp_path, tar()[:stop])
    assert keys == [str(i) for i in range(readable)]
    assert re.search(reason, error) and "\n" not in error


def test_a_header_that_is_noise_is_not_the_end(tmp_path):
    content = bytearray(tar())
    content[at(3) : at(3) + 512] = bytes(range(1, 129)) * 4
    keys, error = read(tmp_path, bytes(content))
    assert keys == ["0", "1"] and "from the example '2' on (a damaged header: " in error


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_that_stops_or_is_damaged(compress, tmp_path):
    whole = compress(tar())
    assert len(read(tmp_path, whole)[0]) == EXAMPLES
    assert "cannot be read as a tar file" in read(tmp_path, whole[: len(whole) // 2])[1]
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 20] = b"\xff" * 20
    assert "cannot be read as a tar file" in read(tmp_path, bytes(damaged))[1]


def test_a_whole_tar_ends_without_a_word(tmp_path):
    assert read(tmp_path, tar()) == ([str(i) for i in range(EXAMPLES)], "")


def test_a_disk_that_fails_for_a_moment_does_not_cost_the_rest_of_a_tar(tmp_path, monkeypatch):
    """It would be listed as one item, however many examples it holds."""
    (tmp_path / "0.tar").write_bytes(tar())
    read, left = tarfile.ExFileObject.read, iter(range(5))

    def read_until_it_fails(self, *arguments):
        if next(left, None) is None:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self, *arguments)

    monkeypatch.setattr(tarfile.ExFileObject, "read", read_until_it_fails)
    fields = {"corpus": str(tmp_path), "splits": {"train": ["webdataset:0.tar"]}}
    with pytest.raises(OSError, match=r"Stale file handle: '.*0\.tar'") as caught:
        tokenize(TokenizeConfig(output=str(tmp_path / "out"), **fields))
    assert exit_codes.of(caught.value) == exit_codes.TRANSIENT
    monkeypatch.setattr(tarfile.ExFileObject, "read", read)
    (folder,) = tokenize(TokenizeConfig(output=str(tmp_path / "out"), **fields))
    assert len(open_dataset(folder)) == EXAMPLES


def test_a_damaged_tar_is_one_skipped_item_until_it_is_repaired(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar())
    (tmp_path / "1.tar").write_bytes(tar()[: at(3, 1)])
    fields = {"corpus": str(tmp_path), "splits": {"train": ["webdataset:{0..1}.tar"]}}
    strict = TokenizeConfig(output=str(tmp_path / "strict"), max_skipped=0.0, **fields)
    with pytest.raises(TokenizeError, match="1 of 12 items are unusable.*1.tar: cannot be read"):
        tokenize(strict)
    loose = TokenizeConfig(output=str(tmp_path / "loose"), max_skipped=0.1, **fields)
    folder = tokenize(loose)[0]
    assert len(open_dataset(folder)) == EXAMPLES + 3
    (skipped,) = (json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines())
    assert "1.tar: cannot be read as a tar file from the example '3' on" in skipped["reason"]
    (tmp_path / "1.tar").write_bytes(tar())
    assert len(open_dataset(tokenize(strict)[0])) == 2 * EXAMPLES
