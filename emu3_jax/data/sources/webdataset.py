"""WebDataset tars as img2dataset and video2dataset write them: KEY.jpg or KEY.mp4, .txt, .json."""

import glob
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator

from emu3_jax.data.sources.source import RawItem, SourceError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
VIDEO_ENDINGS = ("mp4", "webm", "mkv", "mov", "avi", "m4v")
# Errors raised by reading a damaged tar, compressed or not.
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
# Keys of the json for the caption if there is no .txt member.
CAPTION_KEYS = ("caption", "text", "title")


class WebDatasetSource:
    """Tar files; each is one shard, and the members of one key are adjacent in it.

    `pattern` is a glob, a folder of tars, or contains one range such as {00000..00123}. The caption
    is KEY.txt, else the json's "caption"; the json's entries become attributes.
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
        one whose members may be incomplete.
        """
        path = self.paths[shard]
        key, members = None, {}
        try:
            for name, content in _members(path):
                folder, base = os.path.split(name)
                stem, _, ending = base.partition(".")
                member_key = os.path.join(folder, stem)
                if member_key != key:
                    if members:
                        yield _item(path, key, members)
                    key, members = member_key, {}
                members[ending.lower()] = content
        except DAMAGE as error:
            start = f" from the example {key!r} on" if members else ""
            reason = str(error).partition("\n")[0].rstrip(":")
            raise SourceError(f"{path}: cannot be read as a tar file{start} ({reason})") from error
        if members:
            yield _item(path, key, members)


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


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*", tarinfo=_Member) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, tar.extractfile(member).read()


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


def _item(path: str, key: str, members: dict[str, bytes]) -> RawItem:
    where = f"{path}:{key}"
    image = next((members[e] for e in IMAGE_ENDINGS if members.get(e) is not None), None)
    video = next((members[e] for e in VIDEO_ENDINGS if members.get(e) is not None), None)
    media = {"image": image} if image is not None else {"video": video}
    if not any(media.values()) and (image is not None or video is not None):
        return RawItem(key, where=where, problem="the media member is empty")
    try:
        attributes = json.loads(members.get("json") or "{}")
        text = members["txt"].decode() if "txt" in members else None
    except (ValueError, RecursionError) as error:
        return RawItem(key, where=where, problem=f"its json or txt member is unreadable ({error})")
    if not isinstance(attributes, dict):
        return RawItem(key, where=where, problem="its json member is not an object")
    if text is None:
        text = next((attributes[k] for k in CAPTION_KEYS if attributes.get(k)), "")
    return RawItem(key, str(text).strip("\n"), **media, attributes=attributes, where=where)
