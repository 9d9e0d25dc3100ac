"""From raw files to datasets: correct codes, resumable to the byte, a list of skipped items."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken_media import cut_gif

from emu3_jax.data import media
from emu3_jax.data.codec.vision_encoder import VisionEncoder
from emu3_jax.data.sources import RawItem
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig
from emu3_jax.sequence import Document, Video, parse_chat
from emu3_jax.text import ByteTokenizer
from emu3_jax.tokenize import shard
from emu3_jax.tokenize.prepare import Medium, Prepared, moved
from emu3_jax.tokenize.run import TokenizeError, make_grammar, tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

PIXELS = 16 * 16
VISION = VisionTokenizerConfig(
    codebook_size=64, ch=4, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2, attn_resolutions=()
)


@pytest.fixture(scope="module")
def vision():
    module = VisionTokenizer(VISION)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(0)
    # Random weights without compiling the initialisation, which takes longer than all the rest;
    # positive, because variances are among them.
    variables = jax.tree.map(lambda x: abs(rng.normal(0, 0.5, x.shape)).astype(x.dtype), shapes)
    return module, variables


@pytest.fixture(scope="module")
def encoder(vision):
    return VisionEncoder(*vision, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Images of two shapes, clips of several lengths, text, a chat, a document."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(11):
        shape = (16, 16, 3) if i % 3 else (10, 26, 3)
        media.write_png(folder / f"{i}.png", rng.integers(0, 256, shape, np.uint8))
        rows.append({"id": f"s{i}", "image": f"{i}.png", "text": f"picture {i}", "tone": i})
    for i, frames in enumerate((8, 4, 7, 9)):
        clip = rng.integers(0, 256, (frames, 16, 16, 3), np.uint8)
        media.write_webp(folder / f"{i}.webp", clip, fps=4)
        rows.append({"id": f"c{i}", "video": f"{i}.webp", "text": f"clip {i}"})
    rows.append({"id": "t", "text": "<|image start|> stays text"})
    rows.append({"id": "d", "segments": [{"text": "a"}, {"image": "1.png"}, {"image": "2.png"}]})
    turns = [{"question": "what", "answer": "a cat", "image": "1.png"}]
    rows.append({"id": "q", "turns": turns})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def encode(vision, pixels):
    """Codes of one image or clip, straight from the module."""
    module, variables = vision
    apply = jax.jit(lambda v, x: module.apply(v, x, method="encode"))
    return np.asarray(apply(variables, media.to_model(pixels)[None]))[0]


def config(corpus, output, **changes):
    fields = {
        "output": str(output),
        "splits": {"train": ["train.jsonl"]},
        "corpus": str(corpus),
        "min_pixels": PIXELS,
        "max_pixels": PIXELS,
        "image_batch": 4,
        "clip_batch": 2,
        "items_per_shard": 5,
    }
    return TokenizeConfig(**(fields | changes))


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def unbroken(corpus, encoder, tmp_path_factory):
    return tokenize(config(corpus, tmp_path_factory.mktemp("out")), encoder)[0]


def test_records_hold_what_the_vision_tokenizer_sees(unbroken, corpus, vision, encoder):
    grammar = make_grammar(config(corpus, "x"), encoder)
    dataset = open_dataset(unbroken, grammar, encoder.fingerprint)
    images = dataset.records("image")
    assert [r.key for r in images] == [f"s{i}" for i in range(11)]
    for i in (0, 1):
        pixels = media.read_image(corpus / f"{i}.png")
        limits = media.PixelLimits(PIXELS, PIXELS, VISION.spatial_factor)
        pixels = media.resize(pixels, *media.smart_resize(*pixels.shape[:2], limits))
        caption, image = images[i].segments
        np.testing.assert_array_equal(image.codes, encode(vision, pixels))
        assert caption.text == f"picture {i}" and images[i].attributes == {"tone": i}
        assert list(caption.ids) == ByteTokenizer().encode(caption.text)
    assert images[0].segments[1].codes.shape != images[1].segments[1].codes.shape
    assert len({images[i].segments[1].codes.tobytes() for i in range(11)}) == 11
    clips = dataset.records("video")
    shapes = [clips[i].segments[1].codes.shape for i in range(4)]
    assert shapes == [(2, 8, 8), (1, 8, 8), (1, 8, 8), (2, 8, 8)]  # 7 -> 4 and 9 -> 8 frames
    clip = clips[2].segments[1]
    assert isinstance(clip, Video) and (clip.fps, clip.seconds) == (4.0, 1.0)
    pixels = media.read_video(corpus / "2.webp")[0][:4]
    np.testing.assert_array_equal(clip.codes, encode(vision, pixels))


def test_images_are_scaled_to_an_area_before_the_limits(corpus, vision, encoder, tmp_path):
    (corpus / "area.jsonl").write_text('{"id": "a", "image": "0.png", "text": "a"}\n')
    stated = dict(splits={"train": ["area.jsonl"]}, min_pixels=1, max_pixels=1 << 20, area=700)
    chosen = config(corpus, tmp_path, **stated)
    assert chosen.recipe("train")["area"] == 700
    assert "area" not in config(corpus, tmp_path).recipe("train")  # earlier datasets go on
    (record,) = open_dataset(tokenize(chosen, encoder)[0]).records("image")
    pixels = media.read_image(corpus / "0.png")
    limits = media.PixelLimits(1, 1 << 20, VISION.spatial_factor, area=700)
    height, width = media.smart_resize(*pixels.shape[:2], limits)
    assert 600 < height * width < 800 and abs(pixels.shape[0] * pixels.shape[1] - 700) > 100
    codes = encode(vision, media.resize(pixels, height, width))
    np.testing.assert_array_equal(record.segments[1].codes, codes)


def test_copies_are_moved_images_of_the_same_item(corpus, vision, encoder, tmp_path):
    folder = tokenize(config(corpus, tmp_path, copies={"train": 3}, max_shift=2), encoder)[0]
    dataset = open_dataset(folder)
    kinds = {kind: [r.key for r in dataset.records(kind)] for kind in ("image", "text")}
    assert kinds["image"][:4] == ["s0", "s0~1", "s0~2", "s1"]
    assert not any("~" in key for key in kinds["text"])  # text alone is stored once
    first, second, third = (dataset.records("image")[i] for i in range(3))
    assert first.segments[0] == second.segments[0] and first.attributes == third.attributes
    assert first.segments[1] != second.segments[1] != third.segments[1]


def test_a_copy_is_the_image_moved_with_its_edge_repeated():
    pixels = np.arange(2 * 6 * 5 * 3, dtype=np.uint8).reshape(2, 6, 5, 3)
    prepared = Prepared(RawItem("k", video=pixels), [Medium(pixels)])
    copies = [moved(prepared, copy, 2).media[0].pixels for copy in range(1, 20)]
    for copy in copies:
        rows = [np.clip(np.arange(6) + d, 0, 5) for d in range(-2, 3)]
        columns = [np.clip(np.arange(5) + d, 0, 4) for d in range(-2, 3)]
        possible = [pixels[:, r][:, :, c] for r in rows for c in columns]
        assert sum(np.array_equal(copy, one) for one in possible) == 1
    assert len({copy.tobytes() for copy in copies}) > 5
    np.testing.assert_array_equal(copies[0], moved(prepared, 1, 2).media[0].pixels)


def test_documents_chats_and_special_names(unbroken, corpus, encoder):
    dataset = open_dataset(unbroken)
    grammar = make_grammar(config(corpus, "x"), encoder)
    document = dataset.records("document")[0]
    assert [type(s).__name__ for s in document.segments] == ["Text", "Image", "Image"]
    image = dataset.records("image")[1].segments[1]
    assert document.segments[1] == image
    chat = Document(dataset.records("chat")[0].segments)
    turn = parse_chat(chat)[0]
    assert (turn.question, turn.answer) == ("what", "a cat")
    np.testing.assert_array_equal(turn.media[0].codes, image.codes)
    built = grammar.build(chat)
    trained = grammar.tokenizer.decode(built.ids[built.weights > 0])
    assert trained == "a cat"
    text = dataset.records("text")[0].segments
    ids = grammar.build(Document(text)).ids
    assert np.all(grammar.vocab.is_text(ids[1:-1]))


def test_dataset_json_states_what_is_there(unbroken, encoder):
    info = open_dataset(unbroken).info
    assert info.vision_tokenizer == encoder.fingerprint
    counts = {kind: count.records for kind, count in info.counts.items()}
    assert counts == {"text": 1, "image": 11, "video": 4, "document": 1, "chat": 1}
    # BOS, "picture 0", BOI "4*12" IMG, 4 rows of 12 codes and EOL, EOF, EOI, EOS.
    assert info.counts["image"].shortest == 1 + 9 + (1 + 4 + 1) + 4 * 13 + 3
    assert sum(shard.records for shard in info.shards) == 18 and info.skipped == 0
    assert info.recipe["sources"] == ["train.jsonl"] and info.recipe["max_pixels"] == PIXELS
    names = {file.name for file in unbroken.iterdir()}
    assert names == {s.file for s in info.shards} | {"dataset.json", "skipped.jsonl"}


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_a_broken_run_goes_on_to_the_same_bytes(
    stop_at, corpus, encoder, unbroken, tmp_path, monkeypatch
):
    writers = []
    whole = shard.ShardWriter

    class Stopping(whole):
        def write(self, record):
            super().write(record)
            if len(writers) == stop_at:
                raise KeyboardInterrupt

        def __init__(self, path):
            writers.append(path)
            super().__init__(path)

    monkeypatch.setattr(shard, "ShardWriter", Stopping)
    with pytest.raises(KeyboardInterrupt):
        tokenize(config(corpus, tmp_path), encoder)
    monkeypatch.setattr(shard, "ShardWriter", whole)
    assert not (tmp_path / "train" / "dataset.json").exists()
    # Files that a kill leaves.
    (tmp_path / "train" / "image-00003-of-00004.array_record.tmp").write_bytes(b"half")
    done = {p.stem for p in (tmp_path / "train" / "progress").glob("0*.json")}
    before = [p for p in (tmp_path / "train").glob("*.array_record") if p.name[6:11] in done]
    times = {p: p.stat().st_mtime_ns for p in before}
    tokenize(config(corpus, tmp_path), encoder)
    assert content(tmp_path / "train") == content(unbroken)
    assert times == {p: p.stat().st_mtime_ns for p in before}  # finished shards were not redone


def test_a_finished_dataset_is_left_alone_and_another_config_is_refused(
    unbroken, corpus, encoder, monkeypatch
):
    monkeypatch.setattr(shard, "ShardWriter", None)
    tokenize(config(corpus, unbroken.parent), encoder)
    with pytest.raises(TokenizeError, match="train: was made with max_pixels 256, the config has"):
        tokenize(config(corpus, unbroken.parent, max_pixels=400), encoder)


def test_several_workers_make_the_same_dataset(unbroken, corpus, encoder, tmp_path):
    for worker in (1, 0):
        assert not (tmp_path / "train" / "dataset.json").exists()
        tokenize(config(corpus, tmp_path, workers=2, worker=worker), encoder)
    assert content(tmp_path / "train") == content(unbroken)


def test_bad_items_are_skipped_under_a_limit_and_listed(corpus, encoder, tmp_path):
    rows = [{"id": f"s{i}", "image": f"{i}.png", "text": "x"} for i in range(6)]
    for row in rows:
        shutil.copy(corpus / row["image"], tmp_path)
    media.write_webp(tmp_path / "short.webp", np.zeros((3, 16, 16, 3), np.uint8), fps=4)
    (tmp_path / "bad.png").write_bytes(b"no image")
    media.write_png(tmp_path / "thin.png", np.zeros((8, 80, 3), np.uint8))
    (tmp_path / "cut.gif").write_bytes(cut_gif())
    bad = [
        ({"id": "cut", "video": "cut.gif"}, "cut.gif: the GIF is cut short"),
        ({"id": "outside", "image": str(corpus / "1.png")}, "lies outside of the folder"),
        ({"id": "short", "video": "short.webp"}, "3 frames is shorter than .* temporal factor 4"),
        ({"id": "bad", "image": "bad.png"}, "bad.png: not an image"),
        ({"id": "thin", "image": "thin.png"}, "aspect ratio 10.00"),
        ({"id": "gone", "image": "gone.png"}, "gone.png: cannot be read"),
        ({"id": "number", "text": 5}, "a caption must be a string, found 5"),
        ({"id": "nothing"}, "neither text nor an image nor a clip"),
        ({"id": "turn", "turns": [{"question": "a"}]}, 'a turn needs a "answer"'),
        ({"id": "half", "text": "\ud800"}, "surrogate"),
    ]
    rows += [row for row, _ in bad]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    strict = config(tmp_path, tmp_path / "out", items_per_shard=100, max_skipped=0.3)
    with pytest.raises(
        TokenizeError, match="skipped.jsonl lists why 10 of 16 items.*max_skipped=0.3"
    ):
        tokenize(strict, encoder)
    assert not (tmp_path / "out" / "train" / "dataset.json").exists()
    folder = tokenize(dataclasses.replace(strict, max_skipped=0.7), encoder)[0]
    skipped = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    reasons = {one["key"]: one["reason"] for one in skipped}
    for row, reason in bad:
        assert re.search(reason, reasons[row["id"]])
    assert open_dataset(folder).info.skipped == 10
    assert len(open_dataset(folder).records("image")) == 6


def test_images_and_clips_without_caption_are_counted(corpus, encoder, tmp_path):
    files = {"image": "1.png", "video": "0.webp"}
    for file in files.values():
        shutil.copy(corpus / file, tmp_path)
    texts = {"a": "x", "b": "", "c": None, "d": float("nan"), "e": " "}
    rows = [
        {"id": kind + name, kind: file, "text": text}
        for kind, file in files.items()
        for name, text in texts.items()
    ]
    rows += [{"id": "text", "text": "x"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = open_dataset(tokenize(config(tmp_path, tmp_path / "out"), encoder)[0]).info
    found = {kind: (c.records, c.without_caption) for kind, c in info.counts.items()}
    assert found == {"text": (1, 0), "image": (5, 4), "video": (5, 4)}
    assert '"without_caption": 4' in info.to_json()


def test_an_empty_corpus_is_an_error(encoder, tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match="train.jsonl: the corpus is empty"):
        tokenize(config(tmp_path, tmp_path / "out"), encoder)
    (tmp_path / "train.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(TokenizeError, match="skipped.jsonl lists why no item of 1 became a record"):
        tokenize(config(tmp_path, tmp_path / "out", max_skipped=1.0), encoder)


def test_text_alone_needs_no_vision_tokenizer(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "image": "b"}\n')
    folder = tokenize(config(tmp_path, tmp_path / "out", max_skipped=0.5))[0]
    assert open_dataset(folder).info.vision_tokenizer == ""
    assert "no vision tokenizer was given" in (folder / "skipped.jsonl").read_text()


def test_released_vocabulary(corpus, encoder):
    grammar = make_grammar(config(corpus, "x", vocabulary="released"), encoder)
    assert grammar.vocab.size == 184622


def test_bad_configs_are_one_sentence(corpus):
    for change, reason in (
        ({"splits": {}}, "splits is empty"),
        ({"splits": {"train": "train.jsonl"}}, "splits.train must be a list"),
        ({"vocabulary": "big"}, 'vocabulary must be "small" or "released"'),
        ({"worker": 2, "workers": 2}, "worker must be from 0"),
        ({"copies": {"trian": 2}, "max_shift": 1}, "copies names the split 'trian', splits has"),
        ({"copies": {"train": 2}}, "copies.train must be at least 1, and max_shift"),
        ({"output": ""}, "output is empty"),
        ({"output": "gs://bucket/tokens"}, "output is gs://bucket/tokens, expected a folder"),
    ):
        with pytest.raises(ValueError, match=reason):
            config(corpus, **({"output": "x"} | change))
