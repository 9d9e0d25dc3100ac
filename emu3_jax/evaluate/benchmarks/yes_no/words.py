"""What yes-or-no rules share."""

from emu3_jax.evaluate.benchmarks.open_answers.normalising import vlmevalkit_punctuation


def whole_word(answer: str) -> str:
    """VLMEvalKit's reading: "yes", "no", or "unknown" for both words or neither.

    Words lie between blanks, after marks were replaced or deleted as in its rule for open answers:
    "yes/no" has both words, "Yes.No" and "no:" have neither.
    """
    words = vlmevalkit_punctuation(answer.lower()).split()
    found = [word for word in ("yes", "no") if word in words]
    return found[0] if len(found) == 1 else "unknown"
