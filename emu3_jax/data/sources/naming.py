"""What names say: endings of files, and keys under which other projects keep media and chats."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from emu3_jax.data.sources.caption_values import CAPTION_KEYS
from emu3_jax.data.sources.source import MEDIA, SourceError

ENDINGS = {
    "image": "jpg jpeg jpe jfif png apng webp gif bmp tif tiff ppm pgm avif jp2".split(),
    "video": "mp4 m4v mov webm mkv avi mpg mpeg mpe ts m2ts mts flv wmv 3gp ogv".split(),
    "caption": "txt text caption".split(),
    "json": ["json"],
}
ROLES = {ending: role for role, endings in ENDINGS.items() for ending in endings}


def role_of(name: str) -> str:
    """The role of a member, by its ending; "" if it has none that is known."""
    base = os.path.basename(name)
    return ROLES.get(base.rpartition(".")[2].lower(), "") if "." in base else ""


# Keys of LLaVA, ShareGPT and chat templates; of COCO, the datasets library and others.
CHAT_KEYS = ("conversations", "conversation", "messages", "dialog", "dialogue")
MEDIUM_KEYS = (
    *("images", "image_id", "image_path", "image_file", "image_url", "img", "img_path"),
    *("videos", "video_id", "video_path", "video_file", "video_url", "file_name"),
)


def check_layout(
    entries: Mapping[str, Any], keys: Collection[str], *, has_text: bool, has_medium: bool
) -> None:
    """Raises SourceError if the content stands under keys that are not read.

    The example would else be a text without its medium, or a medium without its chat.

    Args:
      entries: what of a row, or of a json member, would become attributes.
      keys: all that it has, for the message.
      has_text: whether it has text, turns or segments.
      has_medium: whether it, or a part of it, has an image or a clip.
    """
    for key, value in entries.items():
        if value in (None, "", [], {}):
            continue
        if not has_text and key in CHAT_KEYS:
            expected = '"turns": [{"question": ..., "answer": ...}]'
            if key == "conversations":
                expected += ', or a source "llava:FILE"'
        elif not has_medium and (key in MEDIUM_KEYS or _names_medium(key, value)):
            expected = 'the path of a file as "image" or "video"'
        else:
            continue
        raise SourceError(f"the key {key!r} is not read; expected {expected} ({found(keys)})")


def found(keys: Collection[str]) -> str:
    """For messages: the keys that there are, the first twelve of them."""
    names = [repr(key) for key in keys]
    return f"found {', '.join(names[:12]) or 'no key'}{', …' if len(names) > 12 else ''}"


def _names_medium(key: str, value: Any) -> bool:
    """Whether the value is the name of an image or a clip, or a list that begins with one."""
    value = value[0] if isinstance(value, list) and value else value
    return (
        isinstance(value, str)
        and key not in CAPTION_KEYS  # captions of the web are often names of files
        and not any(map(str.isspace, value))
        and role_of(value) in MEDIA
    )
