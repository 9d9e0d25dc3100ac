"""WebDataset tars as img2dataset and video2dataset write them: KEY.jpg or KEY.mp4, .txt, .json."""

import errno
import glob
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial

from emu3_jax import exit_codes
from emu3_jax.data.sources.naming import role_of
from emu3_jax.data.sources.source import MEDIA, RawItem, SourceError, Stored
from emu3_jax.data.sources.tar_examples import TarExamples
from emu3_jax.files import MAX_TEXT_BYTES

# Errors raised by reading a damaged tar, compressed or not.
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
# 1 GiB: a larger member is not read, because examples are held in memory.
MAX_MEMBER_BYTES = 1 << 30


class WebDatasetSource:
    """Tar files; each is one shard, and the members of one key are adjacent in it.

    `pattern` is a glob, a folder of tars, or contains one range such as {00000..00123}. A key is a
    member's path up to the first dot of its name; `tar_examples` states what becomes of its
    members. The caption is KEY.txt, else the json's "caption"; the json's entries become
    attributes.
    """

    def __init__(self, pattern: str):
        self.paths = _expand(pattern)
        self.name = os.path.basename(os.path.dirname(os.path.abspath(self.paths[0]))) or "tars"

    @property
    def num_shards(self) -> int:
        """Number of tar files."""
        return len(self.paths)

    def items(self, shard: int) -> Iterator[RawItem]:
        """The examples of one tar, media as bytes.

        If the tar is damaged, raises SourceError after the examples before the damage, without the
        one whose members may be incomplete. OSError for what a restart may cure, such as a stale
        handle: thousands of examples would be lost as one item.
        """
        return self._examples(self.paths[shard], hold=True)

    def listed(self, shard: int) -> Iterator[RawItem]:
        """The examples of one tar with the places of their media; SourceError if compressed."""
        return self._examples(self.paths[shard], hold=False)

    def _examples(self, path: str, hold: bool) -> Iterator[RawItem]:
        examples = TarExamples(path)
        try:
            for name, content, problem in _members(path, hold):
                yield from examples.add(name, content, problem)
        except DAMAGE as error:
            if exit_codes.of(error) == exit_codes.TRANSIENT:
                raise OSError(
                    error.errno or errno.EIO, error.strerror or str(error), path
                ) from error
            start = f" from the example {examples.key!r} on" if examples.key is not None else ""
            reason = str(error).partition("\n")[0].rstrip(":")
            raise SourceError(f"{path}: cannot be read as a tar file{start} ({reason})") from error
        yield from examples.end()


def _expand(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        pattern = os.path.join(pattern, "*.tar")
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if found:
        before, first, last, after = found.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [f"{before}{number:0{len(first)}d}{after}" for number in numbers]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise SourceError(f"{missing[0]}: does not exist, but {pattern} includes it")
    else:
        paths = sorted(glob.glob(pattern))
    if not paths:
        raise SourceError(f"{pattern}: the corpus is empty; no tar file matches")
    return paths


def _members(path: str, hold: bool) -> Iterator[tuple[str, bytes | Stored, str]]:
    """(name, content, problem) of each member that is not a folder.

    The content of a member whose ending is not known is not read, nor is one with a problem.
    Without `hold`, media stay in the file, which must be a plain tar.
    """
    if not hold:
        _check_plain(path)
    with tarfile.open(path, "r:*", tarinfo=_Member) as tar:
        for member in tar:
            if member.isdir():
                continue
            content, problem = b"", ""
            if not member.isfile():
                problem = f"the member {member.name} is a link or a device, expected a file"
            elif member.size > (limit := _limit(member.name)):
                size = f"{member.size} bytes, at most {limit} are read"
                problem = f"the member {member.name} has {size}"
            elif role_of(member.name) in MEDIA and member.size and not (hold or member.sparse):
                content = Stored(partial(_read, path, member.offset_data, member.size))
            elif role_of(member.name):
                content = tar.extractfile(member).read()
            yield member.name, content, problem


def _limit(name: str) -> int:
    """What a member may have in bytes: less for a caption or json."""
    return MAX_TEXT_BYTES if role_of(name) in ("caption", "json") else MAX_MEMBER_BYTES


def _check_plain(path: str) -> None:
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise SourceError(
            f"{path}: is compressed, and its images are needed in any order; expected a plain tar"
        )


def _read(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise SourceError(f"{path}: has become shorter since it was opened")
    return content


class _Member(tarfile.TarInfo):
    """A member, or an error for a damaged header.

    tarfile treats a broken header as the end of the archive, which would silently lose the rest.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # the end marker
            raise
        except tarfile.EmptyHeaderError as error:
            raise tarfile.ReadError("the file stops before its end marker") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a damaged header: {error}") from error
