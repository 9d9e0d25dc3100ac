"""Interleaved documents of texts and images, in two layouts of web corpora.

  OBELICS   "texts" and "images": lists of one length; at each place one of them has an entry
  MMC4      "text_list": sentences, and "image_info": {"image_name", "matched_text_index"}; an image
            stands before its sentence, and sentences are joined by a blank

All of a document is trained on.
"""

from pathlib import Path

from emu3_jax.data.sources.layouts.row_source import media_of
from emu3_jax.data.sources.naming import found
from emu3_jax.data.sources.source import SourceError


def read(row: dict, folder: Path) -> dict:
    """The reader of a `RowSource`."""
    if "texts" in row and "images" in row:
        parts = _obelics(row)
    elif "text_list" in row and "image_info" in row:
        parts = _mmc4(row)
    else:
        raise SourceError(
            f"expected the keys 'texts' and 'images', or 'text_list' and 'image_info', {found(row)}"
        )
    if not parts:
        raise SourceError("the document has neither text nor images")
    return {"segments": tuple(_segment(kind, value, folder) for kind, value in parts)}


def _segment(kind: str, value: object, folder: Path) -> dict:
    if kind == "image":
        (value,) = media_of({"image": [value]}, "image", folder)
    elif not isinstance(value, str):
        raise SourceError(f"a text of the document is {value!r}")
    return {kind: value}


def _list(row: dict, name: str) -> list:
    values = row.pop(name)
    if not isinstance(values, list):
        raise SourceError(f'"{name}" must be a list, found {values!r}')
    return values


def _obelics(row: dict) -> list[tuple[str, object]]:
    texts, images = _list(row, "texts"), _list(row, "images")
    if len(texts) != len(images):
        raise SourceError(f"the row has {len(texts)} texts and {len(images)} images, not as many")
    parts = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise SourceError(f"place {place} must have either a text or an image")
        parts.append(("text", text) if image is None else ("image", image))
    return parts


def _mmc4(row: dict) -> list[tuple[str, object]]:
    sentences, images = _list(row, "text_list"), _list(row, "image_info")
    before: dict[int, list] = {}
    for image in images:
        place = image.get("matched_text_index") if isinstance(image, dict) else None
        if not isinstance(place, int) or not 0 <= place < len(sentences):
            raise SourceError(
                f'an image must have a "matched_text_index" below {len(sentences)}, found {image!r}'
            )
        before.setdefault(place, []).append(image.get("image_name"))
    parts: list[tuple[str, object]] = []
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise SourceError(f"sentence {place} is {sentence!r}, expected a text")
        parts += [("image", name) for name in before.get(place, [])]
        if parts and parts[-1][0] == "text":
            parts[-1] = ("text", f"{parts[-1][1]} {sentence}")
        else:
            parts.append(("text", sentence))
    return parts
