"""Speculative Jacobi decoding: exact in law, by enumeration, where known mistakes are not."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from emu3_jax import sequence
from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import Request, Sampling, generate
from emu3_jax.generate.decoding import laws
from emu3_jax.generate.decoding.decoders import registry
from emu3_jax.generate.decoding.decoders.jacobi import Jacobi
from emu3_jax.generate.decoding.engine import answers
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

VOCAB = vocab_lib.small(text_size=6, codebook_size=4)
MODEL = Transformer(TransformerConfig(VOCAB.size, 16, 24, 1, 2, 1, 8, vocab_multiple=1))
# Two codes, a forced token, two codes: 256 answers. An image of two rows, and a clip of two frames.
IMAGE, CLIP = (np.array([-1, -1, mark, -1, -1], np.int32) for mark in (VOCAB.eol, VOCAB.eof))
PROMPT = np.array([VOCAB.bos, 3, VOCAB.boi, 1, VOCAB.img], np.int32)
NEGATIVE = np.array([VOCAB.bos, VOCAB.boi, 1, VOCAB.img], np.int32)
SETTINGS = dict(temperature=1.3, guidance=1.5, top_k=3)
DRAWS = 2**15


@pytest.fixture(scope="module")
def params():
    boxed = jax.jit(MODEL.init)(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: x * 12 if x.ndim > 1 else x, nn.meta.unbox(boxed))


@pytest.fixture(scope="module")
def exact(params):
    return enumerated(params, IMAGE)


def enumerated(params, mask):
    """The probability of every answer, float64 [4, 4, 4, 4], from whole forward passes."""
    codes = np.array(list(itertools.product(range(4), repeat=4)))
    new = np.tile(mask, (len(codes), 1))
    new[:, [0, 1, 3, 4]] = VOCAB.visual_ids(codes)

    def branch(prompt):
        ids = np.concatenate([np.tile(prompt, (len(codes), 1)), new], axis=1)
        logits = MODEL.apply({"params": params}, ids)[:, len(prompt) - 1 : -1]
        return np.asarray(logits, np.float64)[
            :, [0, 1, 3, 4], VOCAB.visual_start : VOCAB.visual_end
        ]

    cond, uncond = branch(PROMPT), branch(NEGATIVE)
    scores = (uncond + SETTINGS["guidance"] * (cond - uncond)) / SETTINGS["temperature"]
    scores[scores < np.sort(scores)[..., -3:-2]] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    found = np.take_along_axis(p, codes[..., None], -1)[..., 0].prod(1).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(found.sum(), 1)
    assert (found == 0).mean() > 0.5 and found.max() < 0.2  # top-k cuts, and nothing is certain
    return found


def deviation(params, exact, draws=DRAWS, mask=IMAGE, **settings) -> float:
    """How many standard deviations chi-square of the joint law lies above its mean."""
    request = Request(PROMPT, NEGATIVE, mask)
    settings = Sampling(**SETTINGS | settings)
    found = generate(MODEL, params, [request] * draws, settings, VOCAB, batch_size=draws)
    codes = VOCAB.codes(np.stack(found)[:, [0, 1, 3, 4]])
    counts = np.zeros((4,) * 4)
    np.add.at(counts, tuple(codes.T), 1)
    if counts[exact == 0].sum():
        return np.inf
    expected = exact * draws
    common = expected > 10  # rare answers are counted together
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("window", [5, *(pytest.param(w, marks=SLOW) for w in (1, 2, 3, 4))])
def test_the_joint_law_is_that_of_enumeration(params, exact, window):
    assert abs(deviation(params, exact, decoder="jacobi", window=window, seed=window)) < 4


@pytest.mark.parametrize("window", [3, pytest.param(2, marks=SLOW)])
def test_drafts_from_the_frame_before_change_no_law(params, window):
    exact = enumerated(params, CLIP)
    assert abs(deviation(params, exact, mask=CLIP, decoder="jacobi", window=window, seed=7)) < 4


@SLOW
def test_a_draft_from_the_frame_before_is_not_a_uniform_one(params, monkeypatch):
    class ClaimsUniform(Jacobi):
        def _fresh(self, reader, rows):
            drafts = super()._fresh(reader, rows)
            return drafts._replace(law_BWV=jnp.full_like(drafts.law_BWV, 1 / 4))

    wrong = dataclasses.dataclass(frozen=True)(ClaimsUniform)
    monkeypatch.setitem(registry.DECODERS, "wrong", wrong)
    exact = enumerated(params, CLIP)
    assert deviation(params, exact, mask=CLIP, decoder="wrong", window=2, seed=2) > 5


def test_the_sequential_decoder_passes_the_same_test(params, exact):
    assert abs(deviation(params, exact, seed=1)) < 4


class KeepsOldLaws(Jacobi):
    """A draft that passed its test but waits keeps the law that it was tested with."""

    def _couple(self, reader, drafts, scores, uniforms_BW4):
        law, kept, token = super()._couple(reader, drafts, scores, uniforms_BW4)
        return jnp.where(kept[..., None], drafts.law_BWV, law), kept, token


class AddsToTheResidual(Jacobi):
    """A hundredth on every token of the residual law."""

    def _couple(self, reader, drafts, scores, uniforms_BW4):
        law, kept, token = super()._couple(reader, drafts, scores, uniforms_BW4)
        rest = jnp.maximum(law - drafts.law_BWV, 0) + 1e-2
        redrawn = reader.vocab.visual_start + laws.draw(rest, uniforms_BW4[..., 1:3])
        return law, kept, jnp.where(kept, token, redrawn)


class ComparesClusters(Jacobi):
    """Acceptance by the probability of pairs of tokens."""

    def _couple(self, reader, drafts, scores, uniforms_BW4):
        law, kept, token = super()._couple(reader, drafts, scores, uniforms_BW4)
        code = jnp.clip(drafts.token_BW - reader.vocab.visual_start, 0, 3)

        def of_pair(law):
            pairs = jnp.repeat(law.reshape(*law.shape[:-1], 2, 2).sum(-1), 2, axis=-1)
            return jnp.take_along_axis(pairs, code[..., None], axis=-1)[..., 0]

        kept = uniforms_BW4[..., 0] * of_pair(drafts.law_BWV) < of_pair(law)
        return law, kept, jnp.where(kept, drafts.token_BW, token)


class ReusesNoise(Jacobi):
    """Drafts behind the first rejection are coupled by noise that the residual draw uses too."""

    def _couple(self, reader, drafts, scores, uniforms_BW4):
        law, kept, token = super()._couple(reader, drafts, scores, uniforms_BW4)
        noise = -jnp.log(-jnp.log(self.noise_BWV[:, : self.width]))
        rest = jnp.maximum(law - drafts.law_BWV, 0)
        rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, law)
        before = jnp.cumprod(kept, axis=1)
        is_tested = jnp.pad(before[:, :-1], ((0, 0), (1, 0)), constant_values=1) > 0
        redrawn = jnp.argmax(jnp.log(jnp.where(is_tested[..., None], rest, law)) + noise, axis=-1)
        redrawn = reader.vocab.visual_start + redrawn.astype(jnp.int32)
        return law, kept & is_tested, jnp.where(kept & is_tested, token, redrawn)

    def step(self, reader, state):
        offsets = self._offsets(state.rows)
        self.__class__.noise_BWV = reader.uniforms(4, state.rows, offsets, 0 * offsets + 77)
        return super().step(reader, state)


@pytest.mark.parametrize(
    "wrong, draws",
    [
        (KeepsOldLaws, DRAWS),
        pytest.param(AddsToTheResidual, DRAWS, marks=SLOW),
        pytest.param(ComparesClusters, DRAWS, marks=SLOW),
        pytest.param(ReusesNoise, 2 * DRAWS, marks=SLOW),  # the least of these mistakes
    ],
)
def test_known_mistakes_do_not_pass(params, exact, wrong, draws, monkeypatch):
    monkeypatch.setitem(registry.DECODERS, "wrong", dataclasses.dataclass(frozen=True)(wrong))
    assert deviation(params, exact, draws, decoder="wrong", window=5, seed=2) > 5


def images(count=6):
    """Images of several sizes and a clip, with and without guidance, and a text."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        text = rng.integers(0, 6, 3 + 2 * i)
        prompt = np.array([VOCAB.bos, *text, VOCAB.boi, 1, VOCAB.img], np.int32)
        mask = sequence.allowed_after_img(VOCAB, "image", 1, 1 + i % 3, 2 + i)
        found.append(Request(prompt, NEGATIVE if i % 2 else None, mask))
    clip = sequence.allowed_after_img(VOCAB, "paper", 3, 2, 2)
    return [*found, Request(PROMPT, NEGATIVE, clip), Request(PROMPT[:2], max_new=9)]


@pytest.mark.parametrize("window", [1, 3, 16, 27])
def test_greedy_tokens_are_those_of_the_sequential_decoder(params, window):
    greedy = dict(temperature=0, guidance=2.0)
    right = generate(MODEL, params, images(), Sampling(**greedy), VOCAB)
    settings = Sampling(**greedy, decoder="jacobi", window=window)
    found = answers(MODEL, params, images(), settings, VOCAB)
    for answer, tokens in zip(found, right, strict=True):
        np.testing.assert_array_equal(answer.tokens, tokens)
        # Every pass is counted once, by the tokens that it committed.
        assert answer.commits.sum() == answer.passes
        assert (answer.commits * (1 + np.arange(len(answer.commits)))).sum() == len(tokens)
    assert found[-1].passes == len(found[-1].tokens)  # a text


@pytest.mark.parametrize("batch_size", [1, 4])
def test_company_does_not_change_a_draw(params, batch_size):
    settings = Sampling(guidance=3.0, top_k=3, seed=5, decoder="jacobi", window=6)
    together = answers(MODEL, params, images(), settings, VOCAB)
    apart = answers(MODEL, params, images(), settings, VOCAB, batch_size=batch_size)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.passes == other.passes
    passes = [answer.passes for answer in together[:-1]]
    lengths = [len(answer.tokens) for answer in together[:-1]]
    assert sum(passes) < sum(lengths) and len(set(passes)) > 1  # rows advance at their own pace


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match=f"window={window} of jacobi"):
        Sampling(decoder="jacobi", window=window)


def test_a_window_longer_than_the_picture_is_refused():
    settings = Sampling(decoder="jacobi", window=28)
    with pytest.raises(ValueError, match="window=28 is longer than the longest answer, 27 tokens"):
        generate(MODEL, None, images(), settings, VOCAB)
    generate(MODEL, None, [], settings, VOCAB)


def test_a_window_of_another_decoder_is_refused():
    with pytest.raises(ValueError, match="window=4 is of another decoder"):
        Sampling(window=4)
