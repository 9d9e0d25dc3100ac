"""Clips after a first image and on from a clip, against plain forward passes."""

import dataclasses

import numpy as np
import pytest
from tiny_models import GUIDED

from emu3_jax.data.codec import vision_codec
from emu3_jax.generate import Sampling, modalities
from emu3_jax.generate.completion.going_on import extend_video, image_to_video, predict_video
from emu3_jax.sequence import Document, Text, Video

GREEDY = modalities.Options(Sampling(temperature=0.0))


def clip(t=3, h=2, w=3, seed=0, fps=8.0, seconds=None):
    codes = np.random.default_rng(seed).integers(0, 32, (t, h, w)).astype(np.int32)
    return Video(codes, fps, t * 0.5 if seconds is None else seconds)


def likeliest(bundle, caption, block):
    """The likeliest code at each place of a clip after a caption, by one plain forward pass."""
    built = bundle.grammar.build(Document((Text(caption), block)))
    logits = np.asarray(bundle.model.apply(bundle.variables, built.ids[None, :-1]))[0]
    start = bundle.vocab.visual_start
    best = logits[:, start : start + bundle.vocab.codebook_size].argmax(-1)
    return best[bundle.vocab.is_visual(built.ids[1:])].reshape(block.codes.shape)


def test_each_step_is_the_likeliest_after_the_frames_before_it(tiny_bundle):
    clips, captions = [clip(), clip(4, 3, 2, seed=1, fps=4.0, seconds=4.0)], ["a", ""]
    found = extend_video(tiny_bundle, captions, clips, new=5, context=2, options=GREEDY)
    for codes, before, caption in zip(found, clips, captions, strict=True):
        t = len(before.codes)
        assert codes.shape == (t + 5, *before.codes.shape[1:])
        np.testing.assert_array_equal(codes[:t], before.codes)
        for done, now in ((0, 2), (2, 2), (4, 1)):
            window = codes[t + done - 2 : t + done + now]
            seconds = len(window) * before.seconds / t
            best = likeliest(tiny_bundle, caption, Video(window, before.fps, seconds))
            np.testing.assert_array_equal(window[2:], best[2:])


def test_prompts_are_beginnings_of_documents_of_clips(tiny_bundle, monkeypatch):
    seen = []

    def generate(model, params, requests, *rest, **options):
        seen.extend(requests)
        return [np.where(r.forced < 0, tiny_bundle.vocab.visual_start, r.forced) for r in requests]

    monkeypatch.setattr(modalities, "generate", generate)
    options = modalities.Options(GUIDED)
    (drawn,) = extend_video(tiny_bundle, ["wave"], [clip()], 2, context=3, options=options)
    block = Video(drawn, 8.0, 2.5)
    built = {text: tiny_bundle.grammar.build(Document((Text(text), block))).ids
             for text in ("wave", "")}  # fmt: skip
    (request,) = seen
    for prompt, text in ((request.prompt, "wave"), (request.negative, "")):
        np.testing.assert_array_equal(built[text][: len(prompt)], prompt)
    rest = built["wave"][len(request.prompt) :]
    # The mask ends with the last code: EOL, EOF, EOI and EOS say nothing.
    assert len(rest) == len(request.forced) + 4
    assert (request.forced[request.forced >= 0] == rest[:-4][request.forced >= 0]).all()
    assert (request.forced < 0).sum() == 2 * 2 * 3

    predict_video(tiny_bundle, [clip()], 2, 3, options)
    assert seen[-1].negative is None
    np.testing.assert_array_equal(built[""][: len(seen[-1].prompt)], seen[-1].prompt)
    predict_video(tiny_bundle, [clip()], 2, 3, dataclasses.replace(options, negative_prompt="bad"))
    assert seen[-1].negative is not None


def test_an_image_is_the_first_latent_frame(tiny_bundle):
    tokenizer = (tiny_bundle.vision, tiny_bundle.vision_variables)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    factor = tiny_bundle.vision.config.temporal_downsample_factor
    image, still = vision_codec.encode(tokenizer, [pixels, np.stack([pixels] * factor)], 1)
    np.testing.assert_array_equal(still[0], image)
    (codes,) = image_to_video(tiny_bundle, ["a"], [image], 3, 8.0, 1.5, GREEDY)
    np.testing.assert_array_equal(codes[0], image)
    best = likeliest(tiny_bundle, "a", Video(codes, 8.0, 1.5))
    np.testing.assert_array_equal(codes[1:], best[1:])


@pytest.mark.parametrize("decoder, window", [("sequential", None), ("jacobi", 4), ("zipar", 2)])
def test_an_answer_depends_on_seed_and_number_alone(tiny_bundle, decoder, window):
    sampling = dataclasses.replace(GUIDED, decoder=decoder, window=window)
    options = modalities.Options(sampling)
    clips = [clip(seed=1), clip(4, 2, 2, fps=4.0), clip(seed=1)]
    drawn = extend_video(tiny_bundle, ["a", "", "a"], clips, 4, context=2, options=options)
    for number, (before, caption) in enumerate(zip(clips, ["a", "", "a"], strict=True)):
        first = dataclasses.replace(options, first=number)
        (alone,) = extend_video(tiny_bundle, [caption], [before], 4, context=2, options=first)
        np.testing.assert_array_equal(alone, drawn[number])
    assert (drawn[0] != drawn[2]).any()
    other = dataclasses.replace(options, sampling=dataclasses.replace(sampling, seed=5))
    assert (extend_video(tiny_bundle, ["a"], clips[:1], 4, 2, other)[0] != drawn[0]).any()


def test_every_window_has_draws_of_its_own(tiny_bundle, monkeypatch):
    seeds = []
    draw = modalities.draw_clips

    def spy(bundle, captions, sizes, fps, seconds, options, **rest):
        seeds.append(options.sampling.seed)
        return draw(bundle, captions, sizes, fps, seconds, options, **rest)

    monkeypatch.setattr(modalities, "draw_clips", spy)
    extend_video(tiny_bundle, ["a"], [clip()], 3, 1, modalities.Options(Sampling(seed=9)))
    assert seeds[0] == 9 and len(set(seeds)) == 3


def test_rows_of_all_steps_are_counted_together(tiny_bundle):
    calls = []
    options = modalities.Options(on_row=lambda *call: calls.append(call))
    extend_video(tiny_bundle, ["a", "b"], [clip(), clip(3, 4)], 5, 2, options)
    for position, h in ((0, 2), (1, 4)):
        rows = [call[1:] for call in calls if call[0] == position]
        assert [row[:2] for row in rows] == [(row, 5 * h) for row in range(1, 5 * h + 1)]
        # Two latent frames are given in each window; the last draws one.
        drawn = [int((codes[2:] >= 0).all(axis=-1).sum()) for _, _, codes in rows]
        assert drawn == [*range(1, 2 * h + 1)] * 2 + [*range(1, h + 1)]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"new": 0}, "new must be at least 1 latent frame, not 0."),
        ({"context": 0}, "context must be at least 1 latent frame, not 0."),
        ({"context": 4}, "Clip 0 has 3 latent frames, fewer than the 4 to be given."),
        ({"stride": -1}, "stride must be at least 1 latent frame, not -1."),
        ({"captions": ["a", "b"]}, "There are 1 clips and 2 captions."),
        ({"captions": "a"}, "captions must be a list of texts"),
        ({"clips": [Video(np.zeros((3, 2, 3), int))]}, "Clip 0 has no fps and seconds"),
        ({"clips": [clip(3, 6, 7)]}, "3 given and 2 new latent frames of clip 0 do not fit in "
         "the model's context of 200 tokens, which has room for 3 in all."),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_from_is_one_sentence(tiny_bundle, fields, words):
    good = {"captions": ["a"], "clips": [clip()], "new": 2, "context": 3}
    with pytest.raises(ValueError, match=words):
        extend_video(tiny_bundle, **(good | fields))


def test_the_room_is_what_the_engine_takes(tiny_bundle):
    """As many frames as the sentence says are drawn, and one more is too many."""
    big = clip(3, 6, 7)
    short = dataclasses.replace(tiny_bundle, max_context=None)
    request = []

    def tokens(new):
        def generate(model, params, requests, *rest, **options):
            request[:] = requests
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(modalities, "generate", generate)
            extend_video(short, ["a"], [big], new, 2, modalities.Options(GUIDED))
        return request[0].read

    exact = dataclasses.replace(tiny_bundle, max_context=tokens(2))
    extend_video(exact, ["a"], [big], 2, 2, GREEDY)
    less = dataclasses.replace(tiny_bundle, max_context=tokens(2) - 1)
    with pytest.raises(ValueError, match="has room for 3 in all"):
        extend_video(less, ["a"], [big], 2, 2, GREEDY)
    # The same room takes the clip to any length, in steps.
    assert len(extend_video(less, ["a"], [big], 5, 2, GREEDY, stride=1)[0]) == 8
