"""Adaptive ZipAR against its definition, token for token; its passes; raster order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_zipar import MODEL, NEGATIVE, PROMPT, VOCAB, params, some_requests

from emu3_jax.generate import Request, Sampling, generate
from emu3_jax.generate.decoding import device, laws
from emu3_jax.generate.decoding.engine import answers
from emu3_jax.models.language.attention import Context
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.sequence import allowed_after_img

__all__ = ["params"]  # the fixture
UNREAD = 10**6


@jax.jit
def forward(params, ids_T, sees_TT):
    """Logits of the token after each, if each sees some of the others."""

    def logits(module, ids):
        none = jnp.zeros((1, ids.shape[1], 1), bool)
        positions = jnp.arange(ids.shape[1])[None]
        rotation = module._rotation(positions)
        context = Context(*rotation, old_mask=none, new_mask=sees_TT[None])
        empty = KVCache.zeros(module.config, 1, 1)
        x, _ = module._layers(module._embed(ids, True), empty, context, True)
        return module.logits(module.final_norm(x))

    return MODEL.apply({"params": params}, ids_T[None], method=logits)[0]


class Definition:
    """One image by whole forward passes and Python, slowly.

    A token sees what was read before it or with it and lies before it in raster order.
    """

    def __init__(self, params, size, settings: Sampling):
        self.params, self.settings, (self.h, self.w) = params, settings, size
        self.mask = allowed_after_img(VOCAB, "image", 1, *size)
        self.answer = self.mask.copy()
        self.read_N = np.full(len(self.mask), UNREAD)  # the pass in which each was read last
        self.before = None  # the candidate and its law, if one waits

    def offset(self, row: int, code: int) -> int:
        """Of the code-th code of a row, counted from 1; 0 is the token before the first."""
        return row * (self.w + 1) + code - 1

    def scores(self) -> np.ndarray:
        """Of the code after each token of the answer, from the last of the prompt on."""
        read_T = np.concatenate([np.full(len(PROMPT), -1), self.read_N])[:-1]
        sees_TT = np.tri(len(read_T), dtype=bool) & (read_T <= read_T[:, None])
        ids = np.concatenate([PROMPT, np.maximum(self.answer, 0)])[:-1]
        found = forward(self.params, ids, sees_TT)[len(PROMPT) - 1 :]
        return found[:, VOCAB.visual_start : VOCAB.visual_end]

    def law(self, scores_V) -> jax.Array:
        s = self.settings
        filters = laws.Filters(s.greedy, s.top_k, False)
        return laws.law(scores_V, s.temperature, 1.0, filters)

    def uniforms(self, count: int, *folded: int) -> jax.Array:
        numbers = [jnp.int32(x)[None] for x in (0, *folded)]  # of request 0
        return laws.uniforms(jnp.uint32(self.settings.seed), count, *numbers)[0]

    def first_code(self, law_V, offset: int, now: int, complete: bool) -> int | None:
        """The first code of a row if it is kept, else None."""
        if self.before is None:
            code, kept = laws.draw(law_V, self.uniforms(2, offset)), False
        else:
            code, old_V = self.before
            test, *redraw = self.uniforms(3, offset, now)
            kept = test * old_V[code] < law_V[code]
            if not kept:
                rest_V = jnp.maximum(law_V - old_V, 0)
                code = laws.draw(rest_V if rest_V.sum() > 0 else law_V, jnp.stack(redraw))
        self.before = None if kept or complete else (code, law_V)
        return int(code) if kept or complete else None

    def draw(self) -> tuple[np.ndarray, int]:
        """The answer, and the passes that it took."""
        next_of = {0: 0}  # of each row that has begun: the code that it reads next
        now = 0
        while next_of[max(next_of)] < self.w or max(next_of) < self.h - 1:
            newest = max(next_of)
            if newest < self.h - 1 and next_of[newest] == min(self.settings.window, self.w):
                next_of[newest + 1] = 0
            for row, code in next_of.items():
                if self.offset(row, code) >= 0 and code <= self.w:
                    self.read_N[self.offset(row, code)] = now
            scores = self.scores()
            for row, code in list(next_of.items()):
                at = self.offset(row, code) + 1  # of the code that may be drawn
                if code < self.w:
                    law_V = self.law(scores[at])
                    if row and not code:
                        drawn = self.first_code(law_V, at, now, next_of[row - 1] > self.w)
                        if drawn is None:
                            continue
                    else:
                        drawn = int(laws.draw(law_V, self.uniforms(2, at)))
                    self.answer[at] = VOCAB.visual_start + drawn
                next_of[row] = code + 1
            now += 1
        return self.answer, now


@pytest.mark.parametrize("window, temperature, top_k", [(1, 1.0, 0), (2, 0.7, 5), (3, 0.0, 0)])
def test_tokens_are_those_of_the_definition(params, window, temperature, top_k, monkeypatch):
    """The cache is full of large numbers, so that a slot that was not written would be noticed."""
    allocate = device.allocate

    def poisoned(**sizes):
        return jax.tree.map(lambda x: jnp.full_like(x, 1e4), allocate(**sizes))

    monkeypatch.setattr(device, "allocate", poisoned)
    request = Request(PROMPT, None, allowed_after_img(VOCAB, "image", 1, 4, 5))
    for seed in range(2):
        how = dict(temperature=temperature, top_k=top_k, seed=seed, window=window)
        settings = Sampling(decoder="adaptive_zipar", **how)
        (found,) = answers(MODEL, params, [request], settings, VOCAB)
        expected, passes = Definition(params, (4, 5), settings).draw()
        np.testing.assert_array_equal(found.tokens, expected)
        assert found.passes == passes
        assert 3 * (window + 1) + 5 <= passes <= 4 * 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_window_of_a_row_is_raster_order(params, temperature):
    settings = dict(temperature=temperature, guidance=2.0, top_k=9, seed=4)
    right = generate(MODEL, params, some_requests(), Sampling(**settings), VOCAB)
    adaptive = Sampling(**settings, decoder="adaptive_zipar", window=9)
    found = generate(MODEL, params, some_requests(), adaptive, VOCAB)
    for answer, expected in zip(found, right, strict=True):
        np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("window", [1, 3, 5, 6])
def test_a_law_that_never_changes_keeps_every_candidate(params, window, temperature):
    same = jax.tree.map(jnp.zeros_like, params)
    request = Request(PROMPT, None, allowed_after_img(VOCAB, "image", 1, 5, 6))
    settings = Sampling(decoder="adaptive_zipar", window=window, temperature=temperature)
    (answer,) = answers(MODEL, same, [request], settings, VOCAB)
    assert answer.passes == 4 * min(window + 1, 6) + 6


def test_an_answer_does_not_depend_on_its_company(params):
    """Rows of a batch wait on their own, also where one takes the place of another."""
    sizes = [("image", 1, 5, 6), ("image", 1, 3, 9), ("paper", 2, 3, 4), ("image", 1, 6, 2)] * 2
    asked = [Request(PROMPT, NEGATIVE, allowed_after_img(VOCAB, *size)) for size in sizes]
    settings = Sampling(decoder="adaptive_zipar", window=1, guidance=2.0, top_k=9)
    alone, together = (
        answers(MODEL, params, asked, settings, VOCAB, batch_size=size) for size in (1, 4)
    )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.passes == other.passes
    # The same requests with other draws wait for other numbers of codes.
    assert any(a.passes != b.passes for a, b in zip(alone[:4], alone[4:], strict=True))


def test_a_window_that_is_none_is_refused():
    with pytest.raises(ValueError, match="window=0 of adaptive_zipar must be at least 1 code"):
        Sampling(decoder="adaptive_zipar", window=0)
