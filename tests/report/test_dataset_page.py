"""The page of a token dataset shows what is stored; wrong tokenizers are refused."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PILImage
from token_records import GRAMMAR, text, write_dataset

from emu3_jax.data.codec import vision_codec
from emu3_jax.data.tokens.records import Record, open_dataset
from emu3_jax.report.dataset_page import build_page, token_boxes
from emu3_jax.sequence import Document, Image, Video

CODES = np.arange(6).reshape(2, 3)


@pytest.fixture
def dataset(tmp_path):
    clip = Video(np.arange(24).reshape(2, 3, 4), 8.0, 1.0)
    records = [
        Record("a", "s", "image", (text("a <cat>"), Image(CODES))),
        Record("b", "s", "video", (text("a wave"), clip)),
        Record("c", "s", "text", (text("words"),)),
        *(Record(f"n{i}", "s", "text", (text(f"number {i}"),)) for i in range(9)),
    ]
    return open_dataset(write_dataset(tmp_path / "tokens", records))


def test_records_of_each_kind_are_shown(dataset, tiny_bundle):
    vision = (tiny_bundle.vision, tiny_bundle.vision_variables)
    made = build_page(dataset, GRAMMAR, vision, 2)
    assert "a &lt;cat&gt;" in made and "a wave" in made
    assert "words" in made and "number 8" in made and "number 3" not in made  # first and last
    images = re.findall(r'data:image/webp;base64,([^"]*)', made)
    (expected,) = vision_codec.decode(vision, [CODES], 1)
    found = np.asarray(PILImage.open(io.BytesIO(base64.b64decode(images[0]))).convert("RGB"))
    assert len(images) == 2 and found.shape == expected.shape


def test_both_sides_of_a_pair_are_shown(tmp_path, tiny_bundle):
    scores = {"chosen": {"clip": 0.25}, "rejected": {"clip": 0.125, "mine": 3.0}}
    sides = (Image(CODES), Image(CODES + 1))
    pair = Record("p", "s", "preference", (text("a fox"), *sides), {"scores": scores})
    bare = Record("q", "s", "preference", (text("a fox"), *sides))
    dataset = open_dataset(write_dataset(tmp_path / "tokens", [pair, bare]))
    made = build_page(dataset, GRAMMAR, (tiny_bundle.vision, tiny_bundle.vision_variables), 2)
    assert "chosen, clip 0.25: 2 x 3 codes" in made
    assert "rejected, clip 0.125, mine 3: 2 x 3 codes" in made and "rejected: 2 x 3" in made
    assert made.count("stream") - made.count(".stream") == 4  # a sequence for each side


def test_the_sequence_is_that_of_the_model():
    document = Document((text("ab"), Image(CODES)))
    boxes, counts = token_boxes(document, GRAMMAR)
    assert [name for name, _ in boxes] == [
        "BOS", "a", "b", "BOI", "2", "*", "3", "IMG", "0", "1", "2", "EOL", "3", "4", "5", "EOL",
        "EOF", "EOI", "EOS",
    ]  # fmt: skip
    assert counts == {"text": 4, "image": 6, "structure": 9}
    long = Document((Image(np.arange(40).reshape(1, 40)),))
    boxes, counts = token_boxes(long, GRAMMAR)
    assert counts["image"] == 40
    assert [name for name, _ in boxes].count("…") == 1


def test_what_cannot_be_shown(dataset, tmp_path):
    tokens, page = f"--tokens={dataset.path}", f"--output={tmp_path / 'page.html'}"
    for words, message in (
        ([], "--tokens is not set"),
        ([tokens, "--output=page.txt"], "--output must be a file *.html, not 'page.txt'"),
        ([tokens, page], "has images or clips; --vision_tokenizer is not set"),
        (
            [tokens, page, "--vision_tokenizer=nano", "--text_tokenizer=bytes"],
            "the vision tokenizer v1, but this run uses",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "emu3_jax.show", *words], capture_output=True, text=True
        )
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "page.html").exists()
