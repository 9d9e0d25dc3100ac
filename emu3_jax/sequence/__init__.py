"""The document grammar: the only place that knows the order of tokens.

`documents` says what a document is, `formats` how visual blocks are laid out, `chat` the chat
template, and `grammar` turns all of it into token ids and back.
"""

from emu3_jax.sequence.chat import SYSTEM, Turn, chat_document, parse_chat
from emu3_jax.sequence.documents import (
    Document,
    EndOfTurn,
    GrammarError,
    Image,
    LossWeights,
    Segment,
    Sequence,
    Text,
    TokenClass,
    Video,
)
from emu3_jax.sequence.formats import (
    ANY_VISUAL,
    FORMATS,
    VIDEO_FORMATS,
    allowed_after_img,
    image_size,
)
from emu3_jax.sequence.grammar import Grammar

__all__ = [
    "ANY_VISUAL",
    "Document",
    "EndOfTurn",
    "FORMATS",
    "Grammar",
    "GrammarError",
    "Image",
    "LossWeights",
    "SYSTEM",
    "Segment",
    "Sequence",
    "Text",
    "TokenClass",
    "Turn",
    "VIDEO_FORMATS",
    "Video",
    "allowed_after_img",
    "chat_document",
    "image_size",
    "parse_chat",
]
