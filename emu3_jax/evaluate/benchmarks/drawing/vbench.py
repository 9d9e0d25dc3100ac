"""VBench: clips in sixteen dimensions; arXiv 2311.17982, Vchitect/VBench (45e79ec).

Released: vbench/VBench_full_info.json, 946 entries of 944 prompts. Five clips a prompt, and 25 of
those for temporal flickering, of which a filter keeps the still ones, in
videos/<prompt>-<sample>.mp4; a clip serves all dimensions of its prompt. Result files:
*_eval_results.json, {dimension: [score, [{video_path, video_results}, …]]}.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from emu3_jax.evaluate.benchmarks import reading
from emu3_jax.evaluate.benchmarks.averages import mean
from emu3_jax.evaluate.benchmarks.drawing.drawing import (
    DrawingBenchmark,
    Prompt,
    Results,
    check_file_name,
    check_folder,
    check_prompts,
    given,
)

FILE = "VBench_full_info.json"
SAMPLES, FLICKER_SAMPLES = 5, 25
FLICKER = "temporal_flickering"
# scripts/constant.py: dimension → least and largest raw score, and weight.
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    FLICKER: (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
}
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
DIMENSIONS = QUALITY | SEMANTIC
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1
# Dimensions that score every clip; others leave out clips without the object, or that move.
EVERY_CLIP = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)


def read(data: pathlib.Path | None, version: str = "") -> list[Prompt]:
    """The prompts of all dimensions, or of the one that `version` names; each text once."""
    file = given(data, f"VBench's {FILE}")
    file = file / FILE if file.is_dir() else file
    dimensions: dict[str, list[str]] = {}
    for index, row in enumerate(reading.json_file(file, list)):
        where = f"{file}, entry {index}"
        text, names = reading.fields(where, row, prompt_en=str, dimension=list)
        unknown = [name for name in names if name not in DIMENSIONS]
        if unknown or not names:
            raise ValueError(f"{where}: {unknown or names} is none of {tuple(DIMENSIONS)}")
        check_file_name(text, f"-{FLICKER_SAMPLES - 1}.mp4", where)
        wanted = [name for name in names if version in ("", name)]
        if wanted:
            # Two texts occur twice: each of their clips counts for each occurrence.
            dimensions.setdefault(text, []).extend(wanted)
    prompts = []
    for text, names in dimensions.items():
        samples = FLICKER_SAMPLES if FLICKER in names else SAMPLES
        attributes = {"dimensions": names}
        prompts.append(Prompt(f"{len(prompts):04d}", text, samples, "video", attributes))
    check_prompts(prompts, file)
    return prompts


def path(prompt: Prompt, sample: int) -> str:
    """videos/<prompt>-<sample>.mp4."""
    return f"videos/{prompt.text}-{sample}.mp4"


def results(place: pathlib.Path, prompts: Sequence[Prompt], partial: bool = False) -> Results:
    """The figures of all result files in a folder and its folders, or of one file.

    Later files replace a dimension of earlier ones. A missing dimension, or one that was scored on
    fewer clips, is an error unless `partial`.
    """
    files = _files(place)
    if not files:
        raise ValueError(f"{place} holds no result file (*_eval_results.json)")
    raw: dict[str, float] = {}
    notes = []
    for file in files:
        for name, value in _dimensions(file):
            if name not in DIMENSIONS:
                notes.append(f"{file}: {name!r} is no dimension of VBench; it is left out")
                continue
            if not isinstance(value, list) or not value or not isinstance(value[0], (int, float)):
                raise ValueError(f"{file}: {name} is {value!r}, expected [score, clips]")
            raw[name], clips = float(value[0]), len(value[1]) if len(value) > 1 else 0
            expected = SAMPLES * sum(p.attributes["dimensions"].count(name) for p in prompts)
            if name in EVERY_CLIP and clips < expected:
                problem = f"{file}: {name} is scored on {clips} of {expected} clips"
                if not partial:
                    raise ValueError(f"{problem}; VBench leaves out what is missing")
                notes.append(problem)
    missing = [name for name in DIMENSIONS if name not in raw]
    if missing and not partial:
        raise ValueError(
            f"{place}: {len(missing)} of {len(DIMENSIONS)} dimensions are missing, the first is "
            f"{missing[0]}; VBench would count them as 0"
        )
    found = aggregate(raw)
    return Results(found.scores, found.figures, [*notes, *found.notes])


def aggregate(raw: Mapping[str, float]) -> Results:
    """The figures of raw scores of dimensions, as scripts/cal_final_score.py has them.

    Scores are normalised and weighted. Nothing is clipped; a dimension that is missing counts as a
    raw 0, so that it is negative where the least raw score is more than 0. "present/…" are the
    figures of the dimensions that are there.
    """
    weighted = {
        name: (raw.get(name, 0.0) - least) / (largest - least) * weight
        for name, (least, largest, weight) in DIMENSIONS.items()
    }
    figures = _total(weighted)
    figures |= {f"normalised/{name}": value for name, value in weighted.items()}
    figures |= {f"raw/{name}": raw[name] for name in DIMENSIONS if name in raw}
    missing = [name for name in DIMENSIONS if name not in raw]
    notes = []
    if missing:
        present = {name: value for name, value in weighted.items() if name in raw}
        figures |= {f"present/{name}": value for name, value in _total(present).items()}
        notes.append(
            f"{', '.join(missing)} not scored; quality, semantic and total count a raw 0 for each, "
            "as VBench does, and present/… leave them out"
        )
    return Results(weighted, figures, notes)


def _total(weighted: Mapping[str, float]) -> dict[str, float]:
    parts = {}
    for part, members in (("quality", QUALITY), ("semantic", SEMANTIC)):
        there = [name for name in members if name in weighted]
        weight = sum(members[name][2] for name in there)
        parts[part] = sum(weighted[name] for name in there) / weight if there else mean([])
    total = QUALITY_WEIGHT * parts["quality"] + SEMANTIC_WEIGHT * parts["semantic"]
    return parts | {"total": total / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)}


def _files(place: pathlib.Path) -> list[pathlib.Path]:
    """`place`, or the json files in it and in its folders; as there, without hidden ones."""
    if not place.is_dir():
        return [place]
    files = sorted([*place.glob("*.json"), *place.glob("*/*.json")])
    return [file for file in files if not file.relative_to(place).parts[0].startswith((".", "__"))]


def _dimensions(file: pathlib.Path) -> list[tuple[str, Any]]:
    """(dimension, [score, clips]) of a result file; a list is another file of VBench's."""
    content = reading.json_file(file, object)
    pairs = content.items() if isinstance(content, dict) else ()
    return [(name.replace(" ", "_"), value) for name, value in pairs]


VBENCH = DrawingBenchmark(
    read,
    path,
    functools.partial(check_folder, path=path),
    results,
    headline="total",
    versions=tuple(DIMENSIONS),
)
