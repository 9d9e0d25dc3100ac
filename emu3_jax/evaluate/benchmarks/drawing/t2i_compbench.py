"""T2I-CompBench: attributes, relations and complex prompts; arXiv 2307.06350.

Released (Karine-Huang/T2I-CompBench, 1b70949): examples/dataset/<category>_val.txt, a prompt a
line, about 300 each. Ten images a prompt in <category>/samples/<prompt>_<number>.png, where the
number counts through the category; the scorers read the prompt back from the name, up to its first
"_". <category>/ is the scorers' output folder too. Version "" is the six categories of the paper.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.drawing.drawing import (
    DrawingBenchmark,
    Prompt,
    Results,
    check_file_name,
    check_folder,
    check_prompts,
    check_whole,
    compared,
    given,
)

SAMPLES = 10  # as 3_in_1.py takes for granted
BLIP, UNIDET, CLIP = "annotation_blip", "labels/annotation_obj_detection_2d", "annotation_clip"
# Category → where its scorer writes vqa_result.json and its mean, and the name of the figure.
SCORERS = {
    "color": (BLIP, "blip_vqa_score.txt", "blip_vqa"),
    "shape": (BLIP, "blip_vqa_score.txt", "blip_vqa"),
    "texture": (BLIP, "blip_vqa_score.txt", "blip_vqa"),
    "spatial": (UNIDET, "avg_score.txt", "unidet"),
    "non_spatial": (CLIP, "score_avg.txt", "clip"),
    "complex": ("annotation_3_in_1", "vqa_score.txt", "3_in_1"),
    # Of T2I-CompBench++.
    "3d_spatial": ("labels/annotation_obj_detection_3d", "avg_score.txt", "unidet"),
    "numeracy": ("annotation_num", "score.txt", "unidet"),
}
PAPER = tuple(SCORERS)[:6]
# Noun chunks that are no objects, and the number that is asked about (BLIP_vqa.py).
NO_OBJECTS = ("top", "the side", "the left", "the right")
MAX_CHUNKS = 8
# Of determine_position (2D_spatial_eval.py).
OVERLAP, NEAR_PIXELS = 0.1, 150
NEAR = ("next to", "on side of", "near")
# Locality → axis, and the side of the second box on it. "on top of" is asked for but unknown there.
SIDES = {
    "on the right of": ("x", -1),
    "on the left of": ("x", 1),
    "on the bottom of": ("y", -1),
    "on the top of": ("y", 1),
}


def read(data: pathlib.Path | None, version: str = "") -> list[Prompt]:
    """The prompts of the six categories, or of the one that `version` names."""
    folder = given(data, "the folder examples/dataset of T2I-CompBench")
    if version and version not in SCORERS:
        raise ValueError(f"version is {version!r}, expected one of {tuple(SCORERS)}")
    prompts = []
    for category in (version,) if version else PAPER:
        lines = list(_lines(folder / f"{category}_val.txt"))
        relations = _relations(folder) if category == "complex" else None
        for index, (where, line) in enumerate(lines):
            text = line.strip()
            check_file_name(text, f"_{0:06d}.png", where)
            if "_" in text:
                raise ValueError(
                    f"{where}: the prompt {text!r} has '_'; the scorer reads the prompt from the "
                    f"name of the file up to the first '_' and would score {text.split('_')[0]!r}"
                )
            attributes = {"category": category, "index": index}
            if category == "complex":
                attributes["relation"] = relations and relations.get(_key(line), "both")
            prompt = Prompt(f"{category}/{index:04d}", text, SAMPLES, attributes=attributes)
            prompts.append(prompt)
    check_prompts(prompts, folder)
    return prompts


def path(prompt: Prompt, sample: int) -> str:
    """<category>/samples/<prompt>_<number>.png; numbers count through the category."""
    number = prompt.attributes["index"] * prompt.samples + sample
    return f"{prompt.attributes['category']}/samples/{prompt.text}_{number:06d}.png"


def finish(folder: pathlib.Path, prompts: Sequence[Prompt]) -> None:
    """Checks the samples; the scorers need no more."""
    check_folder(folder, prompts, path)


def results(folder: pathlib.Path, prompts: Sequence[Prompt], partial: bool = False) -> Results:
    """The figures of the folders <category>/ into which the scorers wrote.

    With `partial`, categories that were not scored are left out.
    """
    scores, figures, notes = {}, {}, []
    categories: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        categories.setdefault(prompt.attributes["category"], []).append(prompt)
    for category, members in categories.items():
        place, printed, name = SCORERS[category]
        home = folder / category
        if partial and not (home / (BLIP if category == "complex" else place)).is_dir():
            notes.append(f"{category} is not scored")
            continue
        if category == "complex":
            found, more, flags = _complex(home, members)
            figures |= more
            notes += flags
        else:
            found = read_answers(home / place)
            images = sum(prompt.samples for prompt in members)
            notes += check_whole(len(found), images, "images", home / place, partial)
        figures[f"{category}/{name}"] = mean(list(found.values()))
        scores |= {f"{category}/{number}": value for number, value in found.items()}
        notes += _printed(home / place / printed, f"{category}/{name}", figures)
    return Results(scores, figures, notes)


def read_answers(folder: pathlib.Path) -> dict[int, float]:
    """Number of an image → its score, as in vqa_result.json of a scorer, in the file's order."""
    file = folder / "vqa_result.json"
    answers = {}
    for index, row in enumerate(reading.json_file(file, list)):
        where = f"{file}, entry {index}"
        row = row if isinstance(row, Mapping) else {}
        number, value = row.get("question_id"), row.get("answer")
        if not isinstance(number, int) or number in answers:
            raise ValueError(f"{where}: question_id is {number!r}, expected a new whole number")
        try:
            answers[number] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: answer is {value!r}, expected a number") from error
    return answers


def blip_vqa(chunks: Sequence[str], probabilities: Sequence[float]) -> float:
    """BLIP-VQA of an image: the product of P(yes) over its noun chunks, to four decimals.

    Args:
      chunks: of the prompt; only the first eight that may be objects count, and none gives 1.
      probabilities: P(yes) of "<chunk>?", one per chunk.
    """
    product = np.float32(1)
    pairs = zip(chunks, probabilities, strict=True)
    kept = [value for chunk, value in pairs if chunk not in NO_OBJECTS]
    for value in kept[:MAX_CHUNKS]:
        product *= np.float32(value)
    return float(f"{product:.4f}")  # the scorer formats before it takes the mean


def determine_position(
    locality: str | None, box: Mapping[str, float], other: Mapping[str, float]
) -> float:
    """How far a box lies as asked for from another, 0 to 1; boxes {x_min, y_min, x_max, y_max}.

    A locality that the scorer does not know gives 0, among them "on top of".
    """
    distance, overlap = {}, 1.0
    area = other_area = 1.0
    for axis in "xy":
        low, high = f"{axis}_min", f"{axis}_max"
        distance[axis] = (other[low] + other[high]) / 2 - (box[low] + box[high]) / 2
        overlap *= max(0, min(box[high], other[high]) - max(box[low], other[low]))
        area *= box[high] - box[low]
        other_area *= other[high] - other[low]
    near, far = sorted(map(abs, distance.values()))
    if locality in NEAR:
        return 1.0 if near < NEAR_PIXELS else NEAR_PIXELS / far
    if locality not in SIDES:
        return 0.0
    axis, side = SIDES[locality]
    across = distance["y" if axis == "x" else "x"]
    if distance[axis] * side <= abs(across):
        return 0.0
    shared = overlap / (area + other_area - overlap)
    return 1.0 if shared < OVERLAP else OVERLAP / shared


def _complex(
    home: pathlib.Path, prompts: Sequence[Prompt]
) -> tuple[dict[int, float], dict[str, float], list[str]]:
    """3-in-1 of each image by its place, figures of its parts, and notes."""
    parts = {"blip_vqa": BLIP, "unidet": UNIDET, "clip": CLIP}
    answers = {name: read_answers(home / place) for name, place in parts.items()}
    images = list(range(SAMPLES * len(prompts)))
    for name, found in answers.items():
        if sorted(found) != images:
            raise ValueError(
                f"{home / parts[name]} must have the images 0 to {images[-1]}, {SAMPLES} of each "
                f"of {len(prompts)} prompts; it has {len(found)}"
            )
    relations = [prompt.attributes["relation"] for prompt in prompts]
    if None in relations:
        raise ValueError(
            f"{home}: 3-in-1 needs complex_val_spatial.txt and complex_val_action.txt beside the "
            "complex_val.txt that was read"
        )
    by_place = {name: list(found.values()) for name, found in answers.items()}
    total = three_in_one(relations, **by_place)
    figures = {f"complex/{name}": mean(values) for name, values in by_place.items()}
    notes = []
    if any(list(found) != images for found in answers.values()):
        by_number = {name: [found[i] for i in images] for name, found in answers.items()}
        figures["complex/3_in_1_by_number"] = mean(three_in_one(relations, **by_number))
        notes.append(
            f"{home}: results are not in the order of the images; the script takes them by their "
            "place in the file, 3_in_1_by_number by their number"
        )
    return dict(enumerate(total)), figures, notes


def three_in_one(
    relations: Sequence[str],
    blip_vqa: Sequence[float],
    unidet: Sequence[float],
    clip: Sequence[float],
) -> list[float]:
    """The score of each image: BLIP-VQA with UniDet, with CLIP, or with both.

    Args:
      relations: of each prompt: "spatial", "action" or "both".
      blip_vqa: ten scores a prompt.
      unidet: the same.
      clip: the same.
    """
    total = []
    for index, scores in enumerate(zip(blip_vqa, unidet, clip, strict=True)):
        blip, place, action = scores
        used = {"spatial": (place, blip), "action": (action, blip), "both": scores}
        total.append(mean(used[relations[index // SAMPLES]]))
    return total


def _relations(folder: pathlib.Path) -> dict[str, str] | None:
    """Key of a complex prompt → what it is about; None without the lists. Spatial comes first."""
    relations = {}
    for kind in ("action", "spatial"):
        file = folder / f"complex_val_{kind}.txt"
        if not file.is_file():
            return None
        relations |= {_key(line): kind for line in file.read_text(encoding="utf-8").split("\n")}
    return relations


def _key(line: str) -> str:
    """3_in_1.py compares prompts in lower case and up to their first full stop."""
    return line.split(".")[0].lower()


def _lines(file: pathlib.Path) -> Iterator[tuple[str, str]]:
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        yield f"{file}:{number}", line


def _printed(file: pathlib.Path, name: str, figures: Mapping[str, float]) -> list[str]:
    """A note if the scorer's file prints another mean; it is the number at its end."""
    match = re.search(r"[-+.\deE]+$", file.read_text().strip()) if file.is_file() else None
    return compared(figures, {name: float(match[0])}, file) if match else []


T2I_COMPBENCH = DrawingBenchmark(
    read, path, finish, results, headline="color/blip_vqa", versions=tuple(SCORERS)
)
