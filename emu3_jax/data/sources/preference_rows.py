"""Rows of preferences over images, as several projects lay them out, to pairs; no file is opened.

pairs        TRL's prompt, chosen, rejected; also as messages, the prompt apart or in each side;
             score_chosen, score_rejected. Ours: {"image": PATH, "scores": {name: number}, "prompt"}
             as a side, where scores and prompt may be left out
pickapic     caption, jpg_0, jpg_1 (bytes), label_0, label_1 (the higher is preferred)
hpd          prompt, image_path (a list), human_preference (higher is better) or rank (1 is best)
imagereward  prompt, generations (a list of paths), ranking (1 is best)

An image is a path or, as the package datasets stores it, {"bytes": …, "path": …}.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from emu3_jax.data.sources.caption_values import caption_text
from emu3_jax.data.sources.naming import found, role_of
from emu3_jax.data.sources.source import SourceError

BEST_WORST, ALL = PAIRS = ("best_worst", "all")

Row = Mapping[str, Any]


class Side(NamedTuple):
    """One image of a pair: a path or bytes, the prompt that it was made for, and its scores."""

    image: str | bytes
    prompt: str
    scores: dict[str, float]


class Pair(NamedTuple):
    """The preferred image and the other one; `name` tells the pairs of a row apart ("" if one).

    `problem` says why the pair cannot be used; "" if it can.
    """

    name: str
    chosen: Side
    rejected: Side
    problem: str = ""


def read(row: Row, which: str) -> tuple[str, list[Pair]]:
    """(layout, pairs) of a row; `which` of PAIRS says what becomes of rank lists.

    Raises:
      SourceError: the row cannot be read; names the key and what was expected.
    """
    for layout, keys, reader in LAYOUTS:
        if all(row.get(key) is not None for key in keys):
            return layout, [_checked(pair) for pair in reader(row, which)]
    expected = "; ".join(f"{layout}: {', '.join(keys)}" for layout, keys, _ in LAYOUTS)
    raise SourceError(f"expected the keys of a preference, {expected}, {found(row)}")


def _checked(pair: Pair) -> Pair:
    chosen, rejected = pair.chosen, pair.rejected
    problem = pair.problem
    if not problem and chosen.prompt != rejected.prompt:
        problem = (
            f"the prompts of chosen and rejected differ, {chosen.prompt[:40]!r} and "
            f"{rejected.prompt[:40]!r}; expected one"
        )
    if not problem and not chosen.prompt:
        problem = "the prompt is empty"
    if not problem and chosen.image == rejected.image:
        problem = "chosen and rejected are the same image"
    return pair._replace(problem=problem)


def _two_sides(row: Row, which: str) -> Iterator[Pair]:
    """TRL's columns, and ours."""
    del which
    if row.get("images"):
        raise SourceError('images before the answer ("images") are not read; expected text alone')
    yield Pair("", _side(row, "chosen"), _side(row, "rejected"))


def _side(row: Row, name: str) -> Side:
    value, scores = row[name], {}
    prompt = row.get("prompt")
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        *before, answer = value
        if answer.get("role") != "assistant":
            raise SourceError(f'the last message of "{name}" must be the role "assistant"')
        prompt = [*(prompt or ()), *before] if not isinstance(prompt, str) else prompt
        value = _only_image(answer.get("content"), name)
    elif isinstance(value, Mapping) and "image" in value:
        stated = value.get("scores") or {}
        if not isinstance(stated, Mapping):
            raise SourceError(f'"scores" of {name} must be an object, found {stated!r}')
        scores = {key: _number(score, f"{name}, {key}") for key, score in stated.items()}
        prompt, value = value.get("prompt", prompt), value["image"]
    if (score := row.get(f"score_{name}")) is not None:
        scores["score"] = _number(score, f"score_{name}")
    return Side(_image(value, name), _prompt(prompt), scores)


def _only_image(content: Any, name: str) -> Any:
    parts = content if isinstance(content, list) else [content]
    images = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "image"]
    if len(parts) != 1 or not images:
        raise SourceError(f'the answer in "{name}" must be one image, found {str(content)[:80]}')
    return images[0].get("image", images[0].get("path"))


def _prompt(value: Any) -> str:
    """A text, or the text of the one user's message."""
    if not isinstance(value, list):
        return caption_text(value)
    roles = [one.get("role") if isinstance(one, Mapping) else one for one in value]
    if roles != ["user"]:
        raise SourceError(f'a prompt must be one message of the role "user", found {roles}')
    content = value[0].get("content")
    if isinstance(content, list):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise SourceError("images within a prompt are not read; expected text alone")
        content = "".join(part.get("text") or "" for part in content)
    return caption_text(content)


def _pickapic(row: Row, which: str) -> Iterator[Pair]:
    del which
    if row.get("has_label") in (False, 0):
        raise SourceError('nobody chose between the images ("has_label" is false)')
    labels = [_number(row[f"label_{i}"], f"label_{i}") for i in (0, 1)]
    sides = [
        Side(_image(row[f"jpg_{i}"], f"jpg_{i}"), _prompt(row["caption"]), {"label": labels[i]})
        for i in (0, 1)
    ]
    if labels[0] == labels[1]:
        raise SourceError(f"a tie, both labels are {labels[0]:g}; expected one to be preferred")
    yield Pair("", *(sides if labels[0] > labels[1] else sides[::-1]))


def _ranked(images_key: str, ranks_key: str, sign: int) -> Callable[[Row, str], Iterator[Pair]]:
    """A reader of rank lists; `sign` times the number under `ranks_key`: higher is better."""

    def pairs(row: Row, which: str) -> Iterator[Pair]:
        images, ranks = row[images_key], row[ranks_key]
        for key, value in ((images_key, images), (ranks_key, ranks)):
            if not isinstance(value, list):
                raise SourceError(f'"{key}" must be a list, found {str(value)[:80]}')
        if len(images) != len(ranks) or len(images) < 2:
            raise SourceError(
                f'"{images_key}" has {len(images)} images and "{ranks_key}" {len(ranks)} numbers, '
                "expected as many, and at least 2"
            )
        ranks = [_number(rank, ranks_key) for rank in ranks]
        prompt = _prompt(row.get("prompt"))
        sides = [
            Side(_image(image, images_key), prompt, {ranks_key: rank})
            for image, rank in zip(images, ranks, strict=True)
        ]
        yield from _pairs_of(sides, [sign * rank for rank in ranks], which, f"{ranks_key} {ranks}")

    return pairs


def _pairs_of(sides: list[Side], values: list[float], which: str, stated: str) -> Iterator[Pair]:
    if which == BEST_WORST:
        best, worst = max(values), min(values)
        for place, value in (("best", best), ("worst", worst)):
            if values.count(value) > 1:
                number = values.count(value)
                raise SourceError(f"a tie, {number} images share the {place} place ({stated})")
        yield Pair("", sides[values.index(best)], sides[values.index(worst)])
        return
    for i, j in itertools.combinations(range(len(values)), 2):
        if values[j] > values[i]:
            i, j = j, i
        tie = f"a tie, images {i} and {j} have one rank ({stated})"
        yield Pair(f"{i}-{j}", sides[i], sides[j], tie if values[i] == values[j] else "")


def _image(value: Any, name: str) -> str | bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    is_path = isinstance(value, str) and role_of(value) == "image"
    if not is_path and not (isinstance(value, bytes) and value):
        raise SourceError(f'"{name}" must be an image, its path or bytes, found {value!r:.80}')
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SourceError(f'"{name}" must be a finite number, found {value!r:.80}')
    return float(value)


# (name, keys that a row of it has, reader); the first that fits is taken.
LAYOUTS = (
    ("pickapic", ("caption", "jpg_0", "jpg_1", "label_0", "label_1"), _pickapic),
    ("imagereward", ("prompt", "generations", "ranking"), _ranked("generations", "ranking", -1)),
    (
        "hpd",
        ("prompt", "image_path", "human_preference"),
        _ranked("image_path", "human_preference", 1),
    ),
    ("hpd", ("prompt", "image_path", "rank"), _ranked("image_path", "rank", -1)),
    ("pairs", ("chosen", "rejected"), _two_sides),
)
