"""The chat prompts of transformers' Emu3Processor, for talking to a model as that library does.

Its template differs from BAAI's (`emu3_jax.sequence.chat`): no period after the question, no EOS
between turns, a blank behind every text, no system text unless one is given, and all media of a
message stand before its text (huggingface/transformers, convert_emu3_weights_to_hf.py).
"""

from collections.abc import Iterable

from emu3_jax.sequence.chat import Part, Turn, segments_of
from emu3_jax.sequence.documents import Segment


def prompt_segments(turns: Iterable[Turn], system: str = "") -> tuple[Segment, ...]:
    """Segments up to the answer of the last turn or, if it has one, up to the end of that answer.

    Args:
      turns: a question or an answer of several texts has a blank behind each.
      system: text before the first turn; "" for none.
    """
    parts: list[Part] = [f"{system} " if system else ""]
    for turn in turns:
        parts += ["USER: ", *_message(turn.asked()), "ASSISTANT:"]
        if turn.answer is not None:
            parts += [" ", *_message(turn.answered())]
    return tuple(segments_of(parts, loss=False))


def _message(parts: tuple[Part, ...]) -> list[Part]:
    media = [part for part in parts if not isinstance(part, str)]
    return [*media, *(f"{part} " for part in parts if isinstance(part, str))]
