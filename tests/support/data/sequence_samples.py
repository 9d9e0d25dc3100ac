"""Grammars over bytes, random documents and sample documents for the tests of the grammar."""

import numpy as np
from hypothesis import strategies as st

from emu3_jax import vocab as vocab_lib
from emu3_jax.sequence import Document, Grammar, Image, Text, Video
from emu3_jax.text import ByteTokenizer

SPECIAL_NAMES = "<|image start|><|extra_203|> <|endoftext|><|visual token 000001|>"

BYTES = vocab_lib.small(256, 16)
PAPER = Grammar(BYTES, ByteTokenizer(), "paper")
UNIVLA = Grammar(BYTES, ByteTokenizer(), "univla")
GRAMMARS = {"paper": PAPER, "univla": UNIVLA}


texts = st.text(max_size=12) | st.sampled_from([SPECIAL_NAMES, "2*3", "1*2 3fps 4s", "\u2581"])
numbers = st.floats(0, 9999) | st.sampled_from([0.0, 24, 23.976, 0.001, 999999.999])
shapes = st.integers(1, 4)


@st.composite
def visuals(draw, video_format):
    shape = tuple(draw(st.lists(shapes, min_size=2, max_size=3)))
    seed = draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, BYTES.codebook_size, shape)
    loss = draw(st.booleans())
    if len(shape) == 2:
        return Image(codes, loss)
    if video_format == "univla":  # holds neither frame rate nor duration
        return Video(codes, loss=loss)
    return Video(codes, draw(numbers), draw(numbers), loss)


@st.composite
def documents(draw, video_format="paper"):
    segment = st.builds(Text, texts, st.booleans()) | visuals(video_format)
    return Document(tuple(draw(st.lists(segment, max_size=5))))


SAMPLE = np.arange(12).reshape(2, 2, 3)
SAMPLES = {
    "image": (PAPER, Document((Text("ab"), Image(SAMPLE[0]), Text("c")))),
    "paper": (PAPER, Document((Text("ab"), Video(SAMPLE, 8, 0.5), Text("c")))),
    "univla": (UNIVLA, Document((Text("ab"), Video(SAMPLE), Text("c")))),
}
