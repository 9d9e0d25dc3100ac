"""Figures of drawn images: by hand where it can be, and what is refused."""

import clip_files
import numpy as np
import pytest

from emu3_jax.data import media
from emu3_jax.evaluate.benchmarks import drawn_images
from emu3_jax.evaluate.benchmarks.drawing.drawing import Prompt
from emu3_jax.evaluate.benchmarks.drawn_images import DrawnImages, real_images
from emu3_jax.evaluate.vision import frechet
from emu3_jax.scorers.clip_similarity import ClipSimilarity

PROMPTS = [Prompt("0", "a cat", 2), Prompt("1", "a dog", 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """drawn/ and real/ images of many sizes; clip/."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("drawn/0-0", "drawn/0-1", "drawn/1-0", "drawn/1-1", "real/0", "real/5", "real/6"):
        size = rng.integers(20, 40, 2)
        media.write_png(folder / f"{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
    clip_files.save_with_tokenizer(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    return {folder / f"drawn/{p.id}-{i}.png": p for p in PROMPTS for i in range(p.samples)}


def test_clip_scores_are_cosines_with_captions_and_with_real_images(folder, drawn):
    scorer = ClipSimilarity(clip=str(folder / "clip"))
    reference = real_images(str(folder / "real"))
    found, _ = DrawnImages([scorer], reference, None, 2).of(drawn)
    images = [media.read_image(file) for file in drawn]
    texts = scorer.text_embeddings([p.text for p in drawn.values()]).astype(np.float64)
    embedded = scorer.image_embeddings(images).astype(np.float64)
    real = scorer.image_embeddings([media.read_image(folder / "real/0.png")]).astype(np.float64)

    def cosine(a, b):
        return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    assert found["clip"] == pytest.approx(cosine(texts, embedded).mean(), abs=1e-5)
    # Only the first prompt has a real image.
    assert found["clip_image"] == pytest.approx(cosine(embedded[:2], real).mean(), abs=1e-5)


def test_fid_is_the_distance_to_all_real_images(folder, drawn, monkeypatch):
    def means(weights, pixels):
        return weights * pixels.mean((1, 2))

    monkeypatch.setattr(drawn_images.inception, "features", means)
    monkeypatch.setattr(drawn_images, "HELD", 2)
    reference = real_images(str(folder / "real"))
    found, notes = DrawnImages([], reference, 2.0, 2).of(drawn)
    resized = [
        frechet.Statistics.of(
            [2.0 * media.to_model(media.read_image(file)).mean((0, 1)) for file in files]
        )
        for files in (reference.values(), drawn)
    ]
    # Means of resized images differ a little from those of the images.
    assert found["fid"] == pytest.approx(frechet.distance(*resized), abs=0.02)
    assert notes[0] == "fid: 4 drawn and 3 real images" and "fid rests on 3 samples" in notes[1]
    same, _ = DrawnImages([], {str(i): f for i, f in enumerate(drawn)}, 2.0, 2).of(drawn)
    assert same["fid"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_scored_is_named(drawn):
    class Broken:
        name = "broken"

        def score(self, prompts, images):
            return np.array([np.nan if prompt == "a dog" else 1.0 for prompt in prompts])

    with pytest.raises(
        ValueError, match="drawn/1-0.png cannot be scored: broken: the score is nan"
    ):
        DrawnImages([Broken()], {}, None, 2).of(drawn)


def test_a_folder_without_images_or_with_two_of_a_name_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        real_images(str(tmp_path))
    for ending in ("png", "jpg"):
        (tmp_path / f"a.{ending}").write_bytes(b"")
    with pytest.raises(ValueError, match="holds both a.jpg and a.png"):
        real_images(str(tmp_path))
