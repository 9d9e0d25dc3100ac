"""The embedded corpus: Fluent emoji images and clips with captions, as a folder with jsonl files.

The zip holds each clip as a film strip (eight frames side by side); `prepare` cuts the strips into
animated WebP files, so that all other code reads ordinary images, clips and rows.

  python -m emu3_jax.data.fluent_emoji --output=runs/emoji
"""

import glob
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.data import media
from emu3_jax.files import inside, new_folder, write_atomically, write_json

EMBEDDED = shipped.ASSETS / "fluent_emoji.zip"
HELD_OUT = ("validation", "validation_combination")
SPLITS = ("train", *HELD_OUT)
# Only in the corpus of several styles (`emu3_jax.data.emoji_styles`).
UNSEEN_STYLE = "validation_style"
# The five Fitzpatrick modifiers of Unicode, in emojibase's numbering 1 to 5 (the column "tone").
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
FRAMES = 8  # frames in a film strip, evenly spaced over the loop (the corpus's own README)
# The columns of captions.jsonl that every row of the folder keeps.
ATTRIBUTES = ("base", "tone", "tags", "group", "subgroup", "caption_zh")
DONE = "prepared.json"
# 1 GiB: what all entries of a zip may unpack to. The shipped corpus has 7 MiB.
MAX_UNPACKED_BYTES = 1 << 30


def prepare(zip_path: str | os.PathLike, out_dir: str | os.PathLike) -> Path:
    """Unpacks the corpus into `out_dir` and returns it; a folder that is already prepared is kept.

    Files: stills/<id>.webp, clips/<id>.webp (animated), and one jsonl per split (`SPLITS`) with a
    row {"id","image","text",…} per still and a row {"id","video","text","seconds",…} per clip, and
    text.jsonl with rows {"id","text"} made of the captions and tags of the train split.
    """
    return unpacked(zip_path, out_dir, _unpack)


def unpacked(
    zip_path: str | os.PathLike,
    out_dir: str | os.PathLike,
    unpack: Callable[[zipfile.ZipFile, Path], dict[str, int]],
) -> Path:
    """Unpacks a zip by `unpack(archive, folder)` → rows by file, whole or not at all."""
    out_dir = Path(out_dir)
    if (out_dir / DONE).exists():
        return out_dir
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / DONE).exists():
        raise ValueError(f"{out_dir}: is not empty and holds no {DONE}; give an empty folder")
    try:
        with zipfile.ZipFile(shipped.asset(zip_path)) as archive, new_folder(out_dir) as building:
            write_json(building / DONE, unpack(archive, building))
    except Exception as error:  # zipfile and its decompressors raise errors of many types
        if not (out_dir / DONE).exists():  # else another process finished first
            raise ValueError(
                f"{zip_path}: cannot be unpacked as the emoji corpus ({error})"
            ) from error
    # Folders of processes that were killed. One still at work finds the corpus done.
    for leftover in out_dir.parent.glob(f".{glob.escape(out_dir.name)}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return out_dir


def read_rows(archive: zipfile.ZipFile, name: str = "captions.jsonl") -> list[dict]:
    """Returns the rows of a jsonl file in a zip; ValueError if the zip unpacks to too much."""
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise ValueError(f"{size} bytes unpacked are more than the limit of {MAX_UNPACKED_BYTES}")
    return [json.loads(line) for line in archive.read(name).splitlines() if line]


def _unpack(archive: zipfile.ZipFile, out_dir: Path) -> dict[str, int]:
    captions = read_rows(archive)
    rows = {split: [] for split in SPLITS}
    text = []
    for caption in captions:
        attributes = {name: caption[name] for name in ATTRIBUTES}
        row = {"id": caption["id"], "image": caption["still"], "text": caption["caption"]}
        rows[caption["split"]].append(row | attributes)
        write_atomically(inside(out_dir, caption["still"]), archive.read(caption["still"]))
        if caption["clip"]:
            path = inside(out_dir, caption["clip"])
            write_clip(path, archive.read(caption["clip"]), caption)
            row = {"id": f"{caption['id']}-clip", "video": caption["clip"]}
            row |= {"text": caption["caption"], "seconds": caption["seconds"]}
            rows[caption["split"]].append(row | attributes)
        if caption["split"] == "train":
            text.append({"id": f"{caption['id']}-text", "text": sentence(caption)})
    return write_splits(out_dir, {**rows, "text": text})


def write_splits(out_dir: Path, rows: dict[str, list[dict]]) -> dict[str, int]:
    """Writes `<name>.jsonl` for each name; returns the number of rows by name."""
    for name, lines in rows.items():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(out_dir / f"{name}.jsonl", content)
    return {name: len(lines) for name, lines in rows.items()}


def write_clip(path: Path, strip: bytes, caption: dict) -> None:
    """Cuts a film strip of the zip into the frames of an animated WebP file."""
    pixels = media.read_image(strip, name=caption["clip"])
    frames = np.stack(np.split(pixels, FRAMES, axis=1))
    media.write_webp(path, frames, fps=FRAMES / caption["seconds"])


def sentence(caption: dict) -> str:
    """The text-only row of one emoji: its caption, its tags and its group."""
    tags = ", ".join(caption["tags"]) if caption["tags"] else "none"
    return f"{caption['caption']}. tags: {tags}. group: {caption['group']}, {caption['subgroup']}."


def splits_of(corpus: str | os.PathLike) -> tuple[str, ...]:
    """The splits of an unpacked corpus, the training split first."""
    return SPLITS + ((UNSEEN_STYLE,) if (Path(corpus) / f"{UNSEEN_STYLE}.jsonl").is_file() else ())


def read_split(corpus: str | os.PathLike, split: str) -> list[dict]:
    """Returns the rows of a split of the unpacked corpus; ValueError if it is not there."""
    file = Path(corpus) / f"{split}.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{corpus} is not the unpacked corpus: it has no {file.name}; "
            "python -m emu3_jax.data.fluent_emoji makes it"
        )
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _main() -> None:
    folder = prepare(flags.FLAGS.zip, flags.FLAGS.output)
    print(f"{folder}: {(folder / DONE).read_text().strip()}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/emoji", "Folder to create.")
    flags.DEFINE_string("zip", str(EMBEDDED), "The corpus.")
    command_line.run(_main, __doc__)
