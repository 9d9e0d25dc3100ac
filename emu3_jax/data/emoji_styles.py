"""The embedded corpus in four styles: the same things drawn by several hands, in two languages.

`assets/emoji_styles.zip` holds the concepts and, for each style, sheets of 8 x 8 stills; the 3D
stills and clips that `assets/fluent_emoji.zip` has are taken from there.
`examples/emoji_styles/build.py` makes it of packages.

  python -m emu3_jax.data.emoji_styles --output=runs/emoji_styles

A caption names its style: "man cook: dark skin tone, Noto style". Without one it means 3D, as in
`emu3_jax.data.fluent_emoji`: of the training captions of that style every second one names none,
and of those held out all.
"""

import dataclasses
import json
import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.data import fluent_emoji, media
from emu3_jax.data.fluent_emoji import ATTRIBUTES, DONE, SPLITS, UNSEEN_STYLE
from emu3_jax.files import inside, write_atomically

EMBEDDED = shipped.ASSETS / "emoji_styles.zip"
DEFAULT = "3D"
# The style as captions name it in English and in Chinese.
STYLES = {
    DEFAULT: "3D",
    "Noto": "Noto",
    "Twemoji": "Twemoji",
    "flat": "扁平",
}
CONCEPTS = "concepts.jsonl"
SIDE, TILES = 64, 8  # pixels of a still; stills of a row and of a column of a sheet
# Rows in Chinese are in files of their own, so that a model describes images in one language.
CHINESE = "_zh"
# So are the training stills of concepts without skin tones, of which there is one image in a style
# where others have six: a mixture may draw them more often.
THINGS = "train_things"
_NAMED = re.compile(rf", ({'|'.join(STYLES)}) style\s*$")


@dataclasses.dataclass(frozen=True)
class Still:
    """A drawing of a concept.

    Attributes:
      style: a key of STYLES.
      split: where it belongs.
      place: its number among the stills of the style's sheets; None: it is in fluent_emoji.zip.
    """

    style: str
    split: str
    place: int | None


def styled(caption: str, style: str) -> str:
    """The caption with the style named."""
    return f"{caption}, {style} style"


def styled_zh(caption: str, style: str) -> str:
    """The Chinese caption with the style named."""
    return f"{caption}，{STYLES[style]}风格"


def split_style(caption: str) -> tuple[str, str]:
    """(caption without its style, the style that it names; DEFAULT if it names none)."""
    found = _NAMED.search(caption)
    return (caption[: found.start()], found[1]) if found else (caption, DEFAULT)


def sheet(style: str, number: int) -> str:
    """Name of a sheet in the zip."""
    return f"{style.lower()}/{number:03d}.avif"


def prepare(
    zip_path: str | os.PathLike,
    out_dir: str | os.PathLike,
    fluent_zip: str | os.PathLike = fluent_emoji.EMBEDDED,
) -> Path:
    """Unpacks the corpus into `out_dir` and returns it; a folder that is already prepared is kept.

    Files: an image per still, clips/<id>.webp, and `<split>.jsonl` and `<split>_zh.jsonl` for each
    of `fluent_emoji.splits_of`, with the columns of `fluent_emoji.prepare` and "style"; text.jsonl;
    train_things.jsonl, rows of train.jsonl.
    The stills of one concept follow each other, so that the first rows show every style.
    """

    def unpack(archive: zipfile.ZipFile, folder: Path) -> dict[str, int]:
        with zipfile.ZipFile(shipped.asset(fluent_zip)) as fluent:
            return _unpack(archive, fluent, folder)

    return fluent_emoji.unpacked(zip_path, out_dir, unpack)


def _unpack(archive: zipfile.ZipFile, fluent: zipfile.ZipFile, out_dir: Path) -> dict[str, int]:
    known = {row["id"]: row for row in fluent_emoji.read_rows(fluent)}
    sheets = _Sheets(archive)
    rows = {s + language: [] for s in (*SPLITS, UNSEEN_STYLE) for language in ("", CHINESE)}
    text = []
    for concept in fluent_emoji.read_rows(archive, CONCEPTS):
        stills = [Still(style, *where) for style, where in concept["stills"].items()]
        if any(still.split == "train" for still in stills):
            text.append({"id": f"{concept['id']}-text", "text": fluent_emoji.sentence(concept)})
        for still in stills:
            row = _row(concept, still)
            if still.place is None:
                source = known[concept["id"]]
                content = fluent.read(source["still"])
                write_atomically(inside(out_dir, row["image"]), content)
            else:
                source = {"clip": None}
                media.write_png(inside(out_dir, row["image"]), sheets.still(still))
            made = [row]
            if source["clip"]:
                path = inside(out_dir, source["clip"])
                fluent_emoji.write_clip(path, fluent.read(source["clip"]), source)
                made.append(_clip(row, source))
            for one in made:
                zh = one["caption_zh"]
                rows[still.split].append(one)
                rows[still.split + CHINESE].append(one | {"id": f"{one['id']}-zh", "text": zh})
    toned = {row["base"] for row in rows["train"] if row["tone"]}
    rows[THINGS] = [row for row in rows["train"] if "image" in row and row["base"] not in toned]
    return fluent_emoji.write_splits(out_dir, {**rows, "text": text})


class _Sheets:
    """Cuts stills out of the sheets; keeps the last sheet of each style."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive, self._open = archive, {}

    def still(self, still: Still) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        number, place = divmod(still.place, TILES * TILES)
        name = sheet(still.style, number)
        if self._open.get(still.style, ("",))[0] != name:
            pixels = media.read_image(self._archive.read(name), name=name)
            self._open[still.style] = name, pixels
        y, x = (SIDE * index for index in divmod(place, TILES))
        return self._open[still.style][1][y : y + SIDE, x : x + SIDE]


def _row(concept: dict, still: Still) -> dict:
    """The row of a still, in English."""
    is_default = still.style == DEFAULT
    short = still.style.lower()
    suffix = "webp" if still.place is None else "png"
    english, chinese = concept["caption"], concept["caption_zh"]
    # Whether the English or the Chinese caption of a 3D still names the style.
    chance = zlib.crc32(concept["id"].encode()) % 2 if still.split == "train" else None
    row = {
        "id": concept["id"] if is_default else f"{concept['id']}-{short}",
        "image": f"{'stills' if is_default else short}/{concept['id']}.{suffix}",
        "text": styled(english, still.style) if not is_default or chance == 0 else english,
    }
    row |= {name: concept[name] for name in ATTRIBUTES} | {"style": still.style}
    if not is_default or chance == 1:
        row["caption_zh"] = styled_zh(chinese, still.style)
    return row


def _clip(row: dict, source: dict) -> dict:
    """The row of a clip beside that of its still."""
    clip = {name: value for name, value in row.items() if name != "image"}
    return clip | {
        "id": f"{row['id']}-clip",
        "video": source["clip"],
        "seconds": source["seconds"],
    }


def _main() -> None:
    folder = prepare(flags.FLAGS.zip, flags.FLAGS.output, flags.FLAGS.fluent_zip)
    print(f"{folder}: {json.dumps(json.loads((folder / DONE).read_text()))}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/emoji_styles", "Folder to create.")
    flags.DEFINE_string("zip", str(EMBEDDED), "The corpus.")
    flags.DEFINE_string("fluent_zip", str(fluent_emoji.EMBEDDED), "The corpus of 3D emoji.")
    command_line.run(_main, __doc__)
