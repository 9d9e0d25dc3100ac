"""Best-of-n: the candidate with the likeliest caption is kept."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny_models import GUIDED

from emu3_jax import sharding
from emu3_jax.generate import best_of, modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import Job
from emu3_jax.generate.job_runner import METADATA_KEY
from emu3_jax.sequence import Document, Image, Text, TokenClass, Video
from emu3_jax.train import weights

CAPTIONS = ["red apple", "a clock"]
SIZES = ((2, 3), (3, 2))


@pytest.fixture(scope="module")
def options():
    return modalities.Options(GUIDED, negative_prompt="bad", candidates=3)


def _drawn_apart(bundle, options):
    """The three candidates of each answer, one call for each."""

    def draw(caption, size, number):
        alone = dataclasses.replace(options, candidates=1, first=number)
        return modalities.draw_images(bundle, [caption], [size], alone)[0]

    return [
        [draw(c, s, 3 * i + j) for j in range(3)]
        for i, (c, s) in enumerate(zip(CAPTIONS, SIZES, strict=True))
    ]


def _nats(bundle, block, caption):
    """-log p(caption | block) by one plain pass, softmax in float64."""
    built = bundle.grammar.build(Document((block, Text(caption))))
    logits = np.asarray(bundle.model.apply(bundle.variables, built.ids[None, :-1]))[0]
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -log_p[np.arange(len(log_p)), built.ids[1:]]
    text = built.classes[1:] == TokenClass.TEXT
    # The caption and its end stand behind the block, whatever else of the block is text.
    assert text.sum() == len(bundle.grammar.tokenizer.encode(caption)) + 1
    return nats[text].sum()


def test_nats_are_those_of_the_caption_behind_the_block(tiny_bundle):
    rng = np.random.default_rng(0)
    blocks = [Image(rng.integers(0, 32, (2, 3))), Video(rng.integers(0, 32, (2, 2, 2)), 8.0, 0.5)]
    found = best_of.caption_nats(tiny_bundle, blocks, CAPTIONS)
    expected = [_nats(tiny_bundle, b, c) for b, c in zip(blocks, CAPTIONS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_candidate_with_the_likeliest_caption_is_kept(tiny_bundle, options):
    lines = []
    heard = dataclasses.replace(options, progress=lines.append)
    kept = modalities.draw_images(tiny_bundle, CAPTIONS, SIZES, heard)
    assert "3 candidates each" in lines[-1]
    positions = []
    for codes, candidates, caption in zip(
        kept, _drawn_apart(tiny_bundle, options), CAPTIONS, strict=True
    ):
        assert len({c.tobytes() for c in candidates}) == 3
        nats = [_nats(tiny_bundle, Image(c), caption) for c in candidates]
        positions.append(int(np.argmin(nats)))
        np.testing.assert_array_equal(codes, candidates[positions[-1]])
    assert positions != [0, 0]  # else taking the first would pass as well


def test_an_answer_does_not_depend_on_its_batch(tiny_bundle, options):
    together = modalities.draw_images(tiny_bundle, CAPTIONS, SIZES, options)
    alone = dataclasses.replace(options, first=1, batch_size=2)
    (codes,) = modalities.draw_images(tiny_bundle, CAPTIONS[1:], SIZES[1:], alone)
    np.testing.assert_array_equal(codes, together[1])


def test_a_mesh_keeps_the_same(tiny_bundle, tiny_directories, options):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    expected = modalities.draw_images(tiny_bundle, CAPTIONS, SIZES, options)
    spread, _ = weights.load_language_model(tiny_directories / "language", mesh=mesh)
    with jax.set_mesh(mesh):
        found = modalities.draw_images(spread, CAPTIONS, SIZES, options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_candidates_are_written_beside_the_answer_and_make_it_again(tiny_runner):
    job = Job("text_to_image", ("a", "b"), sizes=((2, 3),), candidates=3, sampling=GUIDED)
    _, second = tiny_runner.run(job, report=lambda line: None)
    with PILImage.open(second) as image:
        settings, pixels = json.loads(image.text[METADATA_KEY]), np.asarray(image)
    assert settings["candidates"] == 3
    again = dataclasses.replace(job, prompts=("b",), first=settings["first"])
    (file,) = tiny_runner.run(again, report=lambda line: None)
    with PILImage.open(file) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "words, fields",
    [
        ("candidates must be at least 1", {"candidates": 0}),
        ("all candidates are equal", {"sampling": Sampling(temperature=0)}),
        ("one prompt is empty", {"prompts": ("a", "")}),
        ("for drawing, not for image_to_text", {"task": "image_to_text", "sizes": (),
                                                "media": ("x",)}),
    ],
)  # fmt: skip
def test_candidates_that_cannot_be_judged_are_refused(words, fields):
    good = {"task": "text_to_image", "prompts": ("a",), "sizes": ((2, 2),), "candidates": 2}
    Job(**good)
    with pytest.raises(ValueError, match=words):
        Job(**(good | fields))
    options = {"candidates": 2} | {
        k: v for k, v in fields.items() if k in ("candidates", "sampling")
    }
    if options != {"candidates": 2}:
        with pytest.raises(ValueError, match=words):
            modalities.Options(**options)
