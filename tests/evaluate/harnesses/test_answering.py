"""What adapters to other harnesses share: prompts, answers and likelihoods."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_models
from flax import linen as nn
from PIL import Image as PillowImage

from emu3_jax.data import media
from emu3_jax.evaluate.harnesses import answering
from emu3_jax.evaluate.harnesses.answering import Answerer
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.sequence import Image

GREEDY = modalities.Options(Sampling(temperature=0.0), max_new=6)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in [(4, 4), (6, 4), (8, 8), (4, 6)]]


@pytest.fixture(scope="module")
def answerer(tiny_bundle, first_device):
    return Answerer(tiny_bundle, first_device, tiny_models.LIMITS, batch_size=2)


def codes(answerer, image):
    (found,) = codec.encode(answerer.bundle, [image], answerer.limits)
    return Image(found)


def in_words(answerer, ids):
    """The prompt with [h*w] for an image."""
    ended = np.append(ids, answerer.bundle.vocab.eos)
    segments = answerer.bundle.grammar.parse(ended).segments
    return "".join(
        "[{}*{}]".format(*s.codes.shape) if isinstance(s, Image) else s.text for s in segments
    )


@pytest.mark.parametrize(
    "question, verbatim, asked",
    [
        ("Is it red?", False, "Is it red?. ASSISTANT:"),
        ("Answer yes or no.", False, "Answer yes or no. ASSISTANT:"),
        ("Answer yes or no.", True, "Answer yes or no.. ASSISTANT:"),
        ("From the options above. \n", False, "From the options above. ASSISTANT:"),
        ("From the options above. \n", True, "From the options above. \n. ASSISTANT:"),
        ("And then...", False, "And then... ASSISTANT:"),
    ],
)
def test_a_question_gets_one_period(answerer, question, verbatim, asked):
    answerer = dataclasses.replace(answerer, verbatim=verbatim)
    (ids,) = answerer.prompts([[IMAGES[0], question]])
    assert in_words(answerer, ids) == f"You are a helpful assistant. USER: [2*2]{asked}"


def test_images_stand_where_they_are_shown(answerer):
    asked = [["Is ", IMAGES[0], " like ", IMAGES[1], "?"], ["No image."], [IMAGES[2]]]
    first, second, third = (in_words(answerer, ids) for ids in answerer.prompts(asked))
    assert first.endswith("USER: Is [2*2] like [3*2]?. ASSISTANT:")
    assert second.endswith("USER: No image. ASSISTANT:")
    assert third.endswith("USER: [4*4]. ASSISTANT:")


def test_an_image_may_be_an_array_an_image_of_pillow_or_a_file(answerer, tmp_path):
    media.write_png(tmp_path / "a.png", IMAGES[1])
    ways = (IMAGES[1], PillowImage.fromarray(IMAGES[1]), tmp_path / "a.png")
    first, *others = answerer.prompts([[way, "What?"] for way in ways])
    for ids in others:
        np.testing.assert_array_equal(ids, first)


@pytest.mark.parametrize("height, width", [(4, 40), (40, 4), (7, 36), (4, 20), (20, 20)])
def test_long_images_get_black_borders(height, width):
    found = codec.padded(np.full((height, width, 3), 9, np.uint8))
    if max(height, width) <= 5 * min(height, width):
        assert found.shape == (height, width, 3)
        return
    short = int(max(height, width) / 5 + 1)
    assert found.shape == ((short, width, 3) if width > height else (height, short, 3))
    assert (found == 9).sum() == 3 * height * width and not found[-1, -1].any()
    media.smart_resize(*found.shape[:2], tiny_models.LIMITS)


def test_answers_are_those_of_one_question_at_a_time(answerer):
    """Also beyond the number of questions that are held at once, and drawn ones as well."""
    count = answering.HELD * answerer.batch_size + 3
    questions = [[IMAGES[i % 4], f"Number {i}?"] for i in range(count)]
    for temperature in (0.0, 1.0):
        options = dataclasses.replace(GREEDY, sampling=Sampling(temperature=temperature, seed=3))
        found = answerer.answers(iter(questions), options)
        assert len(set(found)) > 5
        for i in (0, 1, count - 1):
            (ids,) = answerer.prompts([questions[i]])
            one = dataclasses.replace(options, first=i)
            assert modalities.continue_texts(answerer.bundle, [ids], one, True, [""]) == [found[i]]


def test_likelihoods_are_those_of_the_logits(answerer):
    bundle = answerer.bundle
    asked = [
        ([IMAGES[i % 4], f"What{'?' * i}"], text) for i, text in enumerate(["yes", "n", " maybe"])
    ]
    found = answerer.likelihoods(asked)
    for (parts, text), one in zip(asked, found, strict=True):
        (prompt,) = answerer.prompts([parts])
        ids = np.array(bundle.grammar.text_ids(text))
        whole = np.concatenate((prompt, ids))
        logits = np.asarray(bundle.model.apply(bundle.variables, whole[None, :-1]))[0]
        log_p = np.asarray(jax.nn.log_softmax(logits))[len(prompt) - 1 :]
        expected = log_p[np.arange(len(ids)), ids].sum()
        assert one.log_probability == pytest.approx(expected, rel=1e-5)
        assert not one.greedy


def test_the_greedy_answer_is_greedy_and_another_is_not(answerer):
    """Codes are not drawn as text: that one of two is the likeliest token changes nothing."""
    vocab = answerer.bundle.vocab
    variables = nn.meta.unbox(answerer.bundle.variables)
    variables = jax.tree.map(np.array, variables)
    kernel = variables["params"]["lm_head"]["kernel"]
    kernel[:, 128:] = 0  # no byte above ASCII, whose text would be other tokens
    large = 100 * kernel[:, :1]
    kernel[:, vocab.visual_ids([3, 4])] = np.concatenate((large, -large), axis=1)
    bundle = dataclasses.replace(answerer.bundle, variables=variables)
    answerer = dataclasses.replace(answerer, bundle=bundle)
    questions = [[image, "What is it?"] for image in IMAGES]
    texts = answerer.answers(questions, GREEDY)
    assert all(len(text) == GREEDY.max_new for text in texts)
    others = [text[:-1] + chr(ord(text[-1]) ^ 1) for text in texts]
    found = answerer.likelihoods(zip(questions, texts, strict=True))
    changed = answerer.likelihoods(zip(questions, others, strict=True))
    assert all(one.greedy for one in found) and not any(one.greedy for one in changed)
    for one, other in zip(found, changed, strict=True):
        assert one.log_probability > other.log_probability


def test_what_has_no_likelihood_is_named(answerer):
    with pytest.raises(ValueError, match="Question 1: the answer is empty"):
        answerer.likelihoods([([IMAGES[0], "a"], "b"), ([IMAGES[0], "a"], "")])
    with pytest.raises(ValueError, match="have [0-9]+ tokens; the model reads at most 200"):
        answerer.likelihoods([([IMAGES[0], "a" * 200], "b")])
