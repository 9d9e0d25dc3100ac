"""Codebook health: figures counted by hand, drift between two tokenizers, images."""

import json
import shutil

import evaluation_stand_ins as parts
import numpy as np
import pytest

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Subject
from emu3_jax.evaluate.vision import codebook_images
from emu3_jax.evaluate.vision import codebook_use as use
from emu3_jax.evaluate.vision.codebook_health import CodebookHealth, flat_patches
from emu3_jax.progress import Progress
from emu3_jax.train import weights


class Brighter(parts.GreyTokenizer):
    """The stand-in, but a code is drawn a level brighter, and only dark pixels keep their code."""

    def encode(self, pixels, sizes=None):
        codes = super().encode(pixels)
        return codes + (codes > 15)

    def decode(self, codes, sizes=None):
        return super().decode(codes + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    return folder


SUBJECT = Subject(vision_tokenizer=(parts.GreyTokenizer(), {}))


def evaluate(folder, earlier=None, **settings):
    """The result on `folder`, beside the tokenizer `earlier`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "load_vision_tokenizer", lambda path: (earlier, {}))
        settings |= dict(earlier="" if earlier is None else "before")
        return CodebookHealth(data=str(folder), batch_size=4, **settings).run(SUBJECT)


@pytest.fixture(scope="module")
def codes(folder):
    """Kind → all codes of the corpus, flat; two of its images are equal."""
    found = {}
    for kind, stored in (("images", "image"), ("clips", "video")):
        pixels = {
            item.pixels.tobytes(): item.pixels
            for split in items.split_names(folder)
            for item in items.of_kind(items.Reader().read_split(folder, split), stored)
        }
        encoded = vision_codec.encode(SUBJECT.vision_tokenizer, list(pixels.values()), 4)
        found[kind] = np.concatenate([c.ravel() for c in encoded])
    return found


@pytest.fixture(scope="module")
def result(folder):
    return evaluate(folder, Brighter(), shown=3)


def test_use_by_stills_and_by_clips_and_what_they_share(codes, result):
    sets = {kind: set(found.tolist()) for kind, found in codes.items()}
    for kind, found in codes.items():
        assert result.metrics[f"tokens_{kind}"] == found.size
        assert result.metrics[f"used_{kind}"] == pytest.approx(100 * len(sets[kind]) / 64)
    both = 100 * len(sets["images"] & sets["clips"]) / len(sets["images"] | sets["clips"])
    assert 0 < both < 100
    assert result.metrics["overlap"] == pytest.approx(both)
    assert result.metrics["effective_corpus"] == pytest.approx(
        100 * result.metrics["perplexity_corpus"] / 64
    )
    assert any("too few to tell whether all 64 codes" in note for note in result.notes) == (
        result.metrics["tokens_corpus"] < 640
    )


def test_each_image_counts_once_and_other_lists_of_a_folder_cost_a_note(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    expected = evaluate(tmp_path).metrics
    train = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train_zh.jsonl").write_text(train)
    edits = [{"id": str(i), "source": "a.png", "target": "b.png"} for i in range(9)]
    (tmp_path / "edits.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in edits))
    result = evaluate(tmp_path)
    assert {k: v for k, v in result.metrics.items() if k in expected} == expected
    assert result.notes[-1].startswith("without the split edits: 9 of 9 rows cannot be used")
    (tmp_path / "more.jsonl").write_text(
        train + "".join(f'{{"id": {i}, "image": "none.png"}}\n' for i in range(9))
    )
    with pytest.raises(ValueError, match=r"9 of \d+ rows cannot be used"):
        evaluate(tmp_path)
    for split in items.split_names(tmp_path):
        if split != "edits":
            (tmp_path / f"{split}.jsonl").unlink()
    with pytest.raises(ValueError, match="9 of 9 rows cannot be used"):
        CodebookHealth(data=str(tmp_path)).check(None)


def test_encoding_is_counted_from_the_first_batch(folder):
    said = []
    subject = Subject(SUBJECT.label, Progress(said.append, every_s=0.0), **SUBJECT.models)
    CodebookHealth(data=str(folder), batch_size=4).run(subject)
    images = [line for line in said if line.startswith("images encoded: ")]
    assert images[0].startswith("images encoded: 4 of ")
    assert images[-1].endswith("about 0 s left")
    assert "clips encoded: " in said[-1]


def test_drift_counts_tokens_that_stay_and_how_patches_changed(codes, result):
    for kind, found in codes.items():
        assert result.metrics[f"tokens_kept_{kind}"] == pytest.approx(100 * np.mean(found <= 15))
    # One level of the stand-in is 1/16 of [-1, 1], 7.97 of 255, cut to whole numbers.
    assert result.metrics["patch_drift"] == pytest.approx(255 / 32, abs=0.5)


def test_tokenizers_that_cannot_be_compared_are_refused(folder):
    other = parts.GreyTokenizer(parts.GreyConfig(codebook_size=128))
    with pytest.raises(ValueError, match="codebook_size; found 64 and, earlier, 128"):
        evaluate(folder, other)


def test_images_show_the_most_and_the_least_used(codes, result):
    every = np.concatenate(list(codes.values()))
    counts = np.bincount(every, minlength=64)
    sheet = result.images["patches"]
    most = np.argsort(-counts, kind="stable")[0]
    level = int(((most + 0.5) / 16 - 1 + 1) / 2 * 255)
    assert np.all(sheet[2:34, 2:34] == level)
    assert sheet.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    assert np.all(sheet[36:68] == 255)
    least = flat_patches(SUBJECT.vision_tokenizer, [int(np.flatnonzero(counts)[-1])], 4)
    assert least[0].shape == (4, 4, 3)


def test_the_curve_falls_from_the_most_used_code():
    counts = np.zeros(32, np.int64)
    counts[:4] = (1000, 100, 10, 1)
    image = codebook_images.usage_curve({"images": counts, "clips": np.ones(32, np.int64)})
    assert image.shape == (codebook_images.HEIGHT, codebook_images.WIDTH, 3)
    blue = np.array([int(codebook_images.FALLBACK[0][i : i + 2], 16) for i in (1, 3, 5)])
    inside = np.all(image == blue, axis=-1)[codebook_images.TOP :]
    columns = np.flatnonzero(inside.any(0))
    tops = [np.flatnonzero(inside[:, x])[0] for x in columns]
    assert tops == sorted(tops)
    assert tops[-1] - tops[0] > 150  # three of four decades
    assert columns[-1] < codebook_images.LEFT + 100  # 4 of 32 codes


def test_counts():
    counts = use.code_counts([np.array([[0, 1], [1, 1]]), np.array([3])], 5)
    assert counts.tolist() == [1, 3, 0, 1, 0]
    assert use.used_percent(counts) == pytest.approx(60.0)
    assert use.codes_covering(counts, 60.0) == 1
    assert use.codes_covering(counts, 61.0) == 2
    assert use.codes_covering(counts, 100.0) == 3
    assert use.overlap_percent(counts, np.array([0, 1, 1, 1, 0])) == pytest.approx(50.0)
    assert use.perplexity(np.array([2, 2, 0, 2])) == pytest.approx(3.0)
