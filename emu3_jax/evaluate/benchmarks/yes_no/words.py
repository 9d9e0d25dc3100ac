"""What yes-or-no rules share."""

import re

_SEPARATED = re.compile(r"[^a-z0-9']+")


def whole_word(answer: str) -> str:
    """VLMEvalKit's reading: "yes", "no", or "unknown" for both words or neither."""
    words = set(_SEPARATED.split(answer.lower()))
    found = words & {"yes", "no"}
    return found.pop() if len(found) == 1 else "unknown"
