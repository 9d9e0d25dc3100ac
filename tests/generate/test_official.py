"""Samples and prompts of the released code, against ids and strings written out by hand."""

import numpy as np
import pytest

from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import presets
from emu3_jax.sequence import Grammar, Image, Text
from emu3_jax.sequence.official import IGNORED, maybe_null, sft_sample


class Ranks:
    """The few entries of the released rank file that stand here: texts, digits and the star."""

    size = 151643
    texts = {
        "a portrait of young girl.": [64, 33033, 315, 3908, 3743, 13],
        "Please describe the image": [5501, 7512, 279, 2168],
        "": [],
    }

    def encode(self, text):
        if text in self.texts:
            return self.texts[text]
        return [9 if letter == "*" else 15 + int(letter) for letter in text]


GRAMMAR = Grammar(vocab_lib.released(), Ranks())
CAPTION = "a portrait of young girl."
CODES = np.array([[0, 1, 2], [32767, 4, 5]])
# BOI 2*3 IMG, two rows of three codes each ended by EOL, EOF EOI.
BLOCK = [
    151852, 17, 9, 18, 151851,
    151854, 151855, 151856, 151846,
    184621, 151858, 151859, 151846,
    151847, 151853,
]  # fmt: skip
SAMPLE = [151849, 64, 33033, 315, 3908, 3743, 13, *BLOCK, 151643, 151643, 151643]


def test_sft_sample_has_no_eos_and_loss_on_codes_alone():
    ids, labels = sft_sample(GRAMMAR, CAPTION, CODES, 25)
    assert ids.tolist() == SAMPLE
    assert ids.dtype == labels.dtype == np.int32
    expected = [IGNORED] * 12 + SAMPLE[12:15] + [IGNORED] + SAMPLE[16:19] + [IGNORED] * 6
    assert labels.tolist() == expected
    assert IGNORED == -100


def test_sft_sample_with_the_flag_off_trains_on_everything_and_on_pad():
    ids, labels = sft_sample(GRAMMAR, CAPTION, CODES, 25, visual_loss_only=False)
    assert ids.tolist() == labels.tolist() == SAMPLE


def test_sft_sample_is_never_cut():
    ids, _ = sft_sample(GRAMMAR, CAPTION, CODES, 22)
    assert ids.tolist() == SAMPLE[:22]
    with pytest.raises(ValueError, match="has 22 tokens, expected at most 21"):
        sft_sample(GRAMMAR, CAPTION, CODES, 21)


def test_null_prompts_come_as_often_as_asked():
    rng = np.random.default_rng(0)
    nulls = sum(maybe_null(CAPTION, rng) == "" for _ in range(20_000))
    # Binomial with p = 0.05: mean 1000, deviation 31.
    assert abs(nulls - 1000) < 4 * 31
    assert sft_sample(GRAMMAR, "", CODES, 16)[0].tolist() == [151849, *BLOCK]


def test_the_released_prompts_word_for_word():
    assert presets.POSITIVE_SUFFIX == " masterpiece, film grained, best quality."
    assert presets.NEGATIVE_PROMPT == (
        "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."  # noqa: E501
    )


def test_the_stage1_template_is_the_image_and_then_the_text():
    prompt = GRAMMAR.understanding_prompt((Image(CODES), Text("Please describe the image")))
    assert prompt.tolist() == [151849, *BLOCK, 5501, 7512, 279, 2168]
