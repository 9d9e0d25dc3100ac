"""GenEval's judgement of an image from the objects that a detector found in it.

The rules are those of evaluation/evaluate_images.py (djghosh13/geneval, af4902f): every object
asked for must be there; colours and positions are looked at on the first boxes only, the most
confident ones; only `exclude` limits a number from above.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# A centre must be further away than this share of both objects' sizes together.
POSITION_THRESHOLD = 0.1
COSINE = 0.5
TOUCHING = 1e-3  # pixels

Box = Sequence[float]  # x0, y0, x1, y1 in pixels, and then perhaps a confidence
# (class, boxes) → the colour of each.
ColorOf = Callable[[str, Sequence[Box]], Sequence[str]]


def judge(
    objects: Mapping[str, Sequence[Box]], metadata: Mapping[str, Any], color_of: ColorOf
) -> tuple[bool, str]:
    """Whether an image shows what its prompt asks for.

    Args:
      objects: class → boxes, the most confident first.
      metadata: of the prompt: include [{class, count, color?, position?}] and exclude
        [{class, count}].
      color_of: the classifier of colours.

    Returns:
      whether it does, and the reasons why not, a line each.
    """
    reasons = []
    groups: list[Sequence[Box] | None] = []  # of each object asked for; None if it failed
    for asked in metadata.get("include", ()):
        boxes = list(objects.get(asked["class"], ()))[: asked["count"]]
        reason = (
            _number(asked, boxes) or _color(asked, boxes, color_of) or _place(asked, boxes, groups)
        )
        groups.append(None if reason else boxes)
        reasons += [reason] if reason else []
    for limit in metadata.get("exclude", ()):
        name, count = limit["class"], limit["count"]
        found = len(objects.get(name, ()))
        if found >= count:
            reasons.append(f"expected {name}<{count}, found {found}")
    return not reasons, "\n".join(reasons)


def relations(box: Box, other: Box) -> list[str]:
    """Where a box is as seen from another: none, one or two of four directions.

    The distance is shortened by a share of the sizes, but divided by the full one, so that an
    object nearby has no direction.
    """
    corners = np.array([box[:4], other[:4]], np.float64).reshape(2, 2, 2)  # object, corner, axis
    centers = corners.mean(axis=1)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    beyond = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes.sum(axis=0), 0)
    if np.all(beyond < TOUCHING):
        return []
    x, y = beyond * np.sign(offset) / np.linalg.norm(offset)
    directions = {"left of": -x, "right of": x, "above": -y, "below": y}
    return [name for name, cosine in directions.items() if cosine > COSINE]


def _number(asked: Mapping[str, Any], boxes: Sequence[Box]) -> str:
    if len(boxes) >= asked["count"]:
        return ""
    return f"expected {asked['class']}>={asked['count']}, found {len(boxes)}"


def _color(asked: Mapping[str, Any], boxes: Sequence[Box], color_of: ColorOf) -> str:
    if "color" not in asked:
        return ""
    name, count, color = asked["class"], asked["count"], asked["color"]
    found = list(color_of(name, boxes))
    if found.count(color) >= count:
        return ""
    others = ", ".join(f"{found.count(c)} {c}" for c in COLORS if c in found)
    return f"expected {color} {name}>={count}, found {found.count(color)} {color}; and {others}"


def _place(
    asked: Mapping[str, Any], boxes: Sequence[Box], groups: Sequence[Sequence[Box] | None]
) -> str:
    if "position" not in asked:
        return ""
    wanted, index = asked["position"]
    targets = groups[index]
    if targets is None:
        return f"no target for {asked['class']} to be {wanted}"
    for box in boxes:
        for target in targets:
            found = relations(box, target)
            if wanted not in found:
                where = " and ".join(found)
                return f"expected {asked['class']} {wanted} target, found {where} target"
    return ""
