"""Drawing after images and clips in the prompt: edits, first frames, continuations of clips.

The constraints on an answer count from the prompt's end, its last IMG, whatever stands before it.
"""

import dataclasses

import numpy as np
import pytest
from tiny_models import GUIDED

from emu3_jax.generate import modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.sequence import Document, Image, Text, Video

GREEDY = modalities.Options(Sampling(temperature=0.0, guidance=1.0))


def _image(seed, h=2, w=3):
    return Image(np.random.default_rng(seed).integers(0, 32, (h, w)))


def _likeliest(bundle, before, answer):
    """The likeliest code at each place of the last block of a document, by one plain pass."""
    built = bundle.grammar.build(Document((*before, answer)))
    logits = np.asarray(bundle.model.apply(bundle.variables, built.ids[None, :-1]))[0]
    start = bundle.vocab.visual_start
    best = logits[:, start : start + bundle.vocab.codebook_size].argmax(-1)
    visual = np.flatnonzero(bundle.vocab.is_visual(built.ids[1:]))
    return best[visual[-answer.codes.size :]].reshape(answer.codes.shape)


@pytest.mark.parametrize(
    "before",
    [
        (_image(0), Text("redder")),
        (Text("of"), _image(0, 3, 2), Text("and"), _image(1, 1, 4), Text("both")),
        (_image(2),),
    ],
    ids=["an edit", "two images between texts", "an image alone"],
)
def test_an_image_is_drawn_after_images(tiny_bundle, before):
    (codes,) = modalities.draw_images(tiny_bundle, [before], [(3, 2)], GREEDY)
    assert codes.shape == (3, 2)
    np.testing.assert_array_equal(codes, _likeliest(tiny_bundle, before, Image(codes)))


@pytest.mark.parametrize("first", [_image(3), Video(_image(4).codes[None], 8.0, 0.5)])
def test_a_clip_is_drawn_after_its_first_frame_or_part(tiny_bundle, first):
    before, size = (Text("on"), first), (2, 2, 2)
    drawn = modalities.draw_clips(tiny_bundle, [before], [size], 8.0, {2: 0.5}, GREEDY)
    clip = Video(drawn[0], 8.0, 0.5)
    np.testing.assert_array_equal(clip.codes, _likeliest(tiny_bundle, before, clip))


def test_requests_with_and_without_images_share_a_batch(tiny_bundle):
    prompts = ["red", (_image(0), Text("redder")), (_image(1),)]
    sizes = [(2, 3), (3, 2), (1, 4)]
    together = modalities.draw_images(tiny_bundle, prompts, sizes, GREEDY)
    for prompt, size, found in zip(prompts, sizes, together, strict=True):
        (alone,) = modalities.draw_images(tiny_bundle, [prompt], [size], GREEDY)
        np.testing.assert_array_equal(found, alone)


def test_guidance_keeps_the_images_and_drops_the_texts(tiny_bundle, monkeypatch):
    seen = []

    def generate(model, params, requests, *rest, **options):
        seen.extend(requests)
        return [np.where(r.forced < 0, tiny_bundle.vocab.visual_start, r.forced) for r in requests]

    monkeypatch.setattr(modalities, "generate", generate)
    image, grammar = _image(0), tiny_bundle.grammar
    options = modalities.Options(GUIDED)
    prompts = [(Text("of"), image, Text("redder")), "red"]
    modalities.draw_images(tiny_bundle, prompts, [(2, 3)] * 2, options)
    options = dataclasses.replace(options, negative_prompt="bad")
    modalities.draw_images(tiny_bundle, prompts[:1], [(2, 3)], options)
    expected = [
        grammar.image_prompt((image,), 2, 3),
        grammar.image_prompt("", 2, 3),
        grammar.image_prompt((image, Text("bad")), 2, 3),
    ]
    for request, negative in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(request.negative, negative)


def test_candidates_after_segments_are_refused(tiny_bundle):
    options = modalities.Options(Sampling(), candidates=2)
    with pytest.raises(ValueError, match="Candidates are compared by captions"):
        modalities.draw_images(tiny_bundle, [(_image(0),)], [(2, 2)], options)
