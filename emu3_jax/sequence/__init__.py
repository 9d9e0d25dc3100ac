"""The document grammar: the only module that defines the order of tokens.

`documents` defines documents, `formats` the layout of visual blocks, `chat` the chat template
(`transformers_chat` that of transformers), and `grammar` turns documents into token ids and back.
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
