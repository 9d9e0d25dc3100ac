"""Metrics as a person reads them: what matters first, rounded by what it is. Logs keep every digit.

A task or evaluator states its `headline`: patterns of the names that come first, in order.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence

# Words of a name → (factor, decimals, unit). Other numbers get four significant digits.
_QUANTITIES = {
    r"psnr|(^|_)db(_|$)": (1, 2, " dB"),
    r"ssim|perceptual": (1, 4, ""),
    r"(^|_)(used|effective|overlap|kept|recall|exact|nearer)(_|$)": (1, 1, " %"),
    r"^(tone|person|both|activity|overall|whole|two|three)_": (1, 1, " %"),
    r"^codebook/(dead|shared)": (100, 1, " %"),
    r"^seconds$": (1, 1, " s"),
}


def number(name: str, value: float) -> str:
    """Returns the rounded value of a metric with its unit: "24.17 dB", "0.8123", "12,345"."""
    for words, (factor, decimals, unit) in _QUANTITIES.items():
        if re.search(words, name):
            return f"{factor * value:,.{decimals}f}{unit}"
    if float(value).is_integer() or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def groups(names: Sequence[str], headline: Sequence[str] = ()) -> list[list[str]]:
    """Returns the names that each pattern of `headline` matches first, then the others."""
    found, left = [], list(names)
    for pattern in headline:
        found.append([name for name in left if fnmatch.fnmatchcase(name, pattern)])
        left = [name for name in left if name not in found[-1]]
    return [group for group in (*found, left) if group]


def line(values: Mapping[str, float], headline: Sequence[str] = (), rest: bool = True) -> str:
    """Returns metrics in one line, in the order of `groups`; a bar separates the groups.

    Args:
      values: name → number.
      headline: as in `groups`.
      rest: whether metrics that the headline does not name are shown too.
    """
    found = groups(list(values), headline)
    named = [any(fnmatch.fnmatchcase(group[0], p) for p in headline) for group in found]
    return " | ".join(
        ", ".join(f"{name.removeprefix('loss/')} {number(name, values[name])}" for name in group)
        for group, is_named in zip(found, named, strict=True)
        if is_named or rest
    )
