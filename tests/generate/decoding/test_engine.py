"""The engine against whole forward passes, in any batch, on any mesh."""

import dataclasses
import functools
import json

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_models import TWO_LAYERS

from emu3_jax import compiling, sharding
from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import CancelledError, Request, Sampling, generate
from emu3_jax.generate.decoding import engine, session
from emu3_jax.generate.decoding.engine import answers
from emu3_jax.models.language.kv_cache import KVCache, cache_bytes
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.progress import Progress
from emu3_jax.sequence import allowed_after_img

VOCAB = vocab_lib.small(text_size=20, codebook_size=12)
MODEL = Transformer(TransformerConfig(VOCAB.size, vocab_multiple=16, **TWO_LAYERS))


@pytest.fixture(scope="module")
def params():
    """Weights large enough for distributions that are far from uniform."""
    boxed = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, nn.meta.unbox(boxed))


def image_mask(h, w, vocab=VOCAB):
    return allowed_after_img(vocab, "image", 1, h, w)


def image_prompt(*text, vocab=VOCAB):
    return np.array([vocab.bos, *text, vocab.boi, 7, vocab.img], np.int32)


def some_requests():
    """Images of several sizes, with and without guidance, and texts; prompts of many lengths."""
    return [
        Request(image_prompt(1, 2, 3), image_prompt(), image_mask(2, 3)),
        Request(image_prompt(*range(19)), image_prompt(4), image_mask(1, 4)),
        Request(np.array([VOCAB.bos]), max_new=5),
        Request(image_prompt(9), None, image_mask(3, 2)),
        Request(np.array([VOCAB.bos, 3, 4, 5, 6]), np.array([VOCAB.bos]), max_new=9),
        Request(image_prompt(5), image_prompt(*range(12)), image_mask(2, 2)),
    ]


class Blind(Transformer):
    """Hidden states of ones, whatever is read: the head alone decides."""

    def read(self, tokens, positions, cache, written):
        config = self.config
        del positions, cache, written
        new = KVCache.zeros(config, *tokens.shape)
        return jnp.ones((*tokens.shape, config.hidden_size)), new


@jax.jit
def whole_forward(params, ids, segment_ids):
    return jax.nn.log_softmax(MODEL.apply({"params": params}, ids, segment_ids=segment_ids))


def chi_square(counts, probabilities):
    """How many standard deviations the chi-square statistic lies above its mean."""
    expected = probabilities * counts.sum()
    assert counts[expected == 0].sum() == 0, "a token of probability zero was drawn"
    freedom = (expected > 0).sum() - 1
    terms = (counts - expected) ** 2 / np.where(expected > 0, expected, 1)
    return (terms.sum() - freedom) / np.sqrt(2 * freedom)


def scores_of(params, prompt, negative, guidance):
    """Next-token scores by whole forward passes without a cache, padded on the right."""

    def log_p(ids):
        padded = np.zeros((1, 48), np.int32)
        padded[0, : len(ids)] = ids
        segment_ids = (np.arange(48) < len(ids)).astype(np.int32)[None]
        return np.asarray(whole_forward(params, padded, segment_ids)[0, len(ids) - 1], np.float64)

    cond = log_p(prompt)
    if negative is None or guidance == 1:
        return cond
    return log_p(negative) + guidance * (cond - log_p(negative))


def allowed(entry):
    """The ids that an entry of a constraint mask allows."""
    if entry == -1:
        return np.arange(VOCAB.visual_start, VOCAB.visual_end)
    if entry == -2:
        return np.array([*range(VOCAB.text_size), VOCAB.eos])
    return np.array([entry])


def greedy(params, request, negative, guidance):
    """The greedy answer by whole forward passes."""
    prompt, answer = list(request.prompt), []
    for entry in request.mask:
        ids = allowed(entry)
        token = ids[np.argmax(scores_of(params, prompt, negative, guidance)[ids])]
        answer.append(token)
        prompt.append(token)
        negative = None if negative is None else [*negative, token]
        if token == VOCAB.eos:
            break
    return answer


def test_greedy_equals_whole_forward_passes(params):
    settings = Sampling(temperature=0, guidance=2.5)
    answers = generate(MODEL, params, some_requests(), settings, VOCAB)
    for request, answer in zip(some_requests(), answers, strict=True):
        assert answer.tolist() == greedy(params, request, request.negative, 2.5)


def test_the_official_scripts_let_the_negative_branch_see_its_padding(params):
    settings = Sampling(temperature=0, guidance=2.5, attend_negative_padding=True)
    chosen = [request for request in some_requests() if request.negative is not None]
    longest = max(len(request.negative) for request in chosen)
    answers = generate(MODEL, params, chosen, settings, VOCAB)
    lengths = set()
    for request, answer in zip(chosen, answers, strict=True):
        missing = longest - len(request.negative)
        padded = [VOCAB.pad] * missing + list(request.negative)
        assert answer.tolist() == greedy(params, request, padded, 2.5)
        lengths.add(missing)
    assert len(lengths) > 1  # or nothing was padded


def test_other_requests_do_not_change_an_answer(params):
    settings = Sampling(guidance=3.0, top_k=9, seed=5)
    together = generate(MODEL, params, some_requests(), settings, VOCAB)
    pairs = generate(MODEL, params, some_requests(), settings, VOCAB, batch_size=2)
    for number, request in enumerate(some_requests()):
        alone = Request(request.prompt, request.negative, request.forced, request.max_new, number)
        (answer,) = generate(MODEL, params, [alone], settings, VOCAB)
        assert answer.tolist() == together[number].tolist() == pairs[number].tolist()
    reseeded = Sampling(guidance=3.0, top_k=9, seed=6)
    other = generate(MODEL, params, some_requests(), reseeded, VOCAB)
    assert any(a.tolist() != b.tolist() for a, b in zip(together, other, strict=True))


def test_streamed_pieces_together_are_the_answers(params):
    settings = Sampling(guidance=3.0, seed=5)
    expected = generate(MODEL, params, some_requests(), settings, VOCAB)
    pieces = [[] for _ in expected]
    calls = []

    def stream(position, tokens):
        calls.append(position)
        assert 0 < len(tokens) <= session.STREAM_EVERY
        pieces[position] += tokens.tolist()

    found = generate(MODEL, params, some_requests(), settings, VOCAB, batch_size=4, stream=stream)
    for answer, streamed, whole in zip(found, pieces, expected, strict=True):
        assert answer.tolist() == streamed == whole.tolist()
    assert len(calls) > len(expected)  # long answers came in several pieces


def test_a_cancelled_queue_carries_the_answers_that_are_finished(params):
    settings = Sampling(guidance=3.0, seed=5)
    expected = generate(MODEL, params, some_requests(), settings, VOCAB)
    carried = []
    for stop in range(7):
        asked = iter([*[False] * stop, True])
        cancel = functools.partial(next, asked)
        with pytest.raises(CancelledError) as stopped:
            generate(MODEL, params, some_requests(), settings, VOCAB, batch_size=1, cancel=cancel)
        found = stopped.value.answers
        assert str(stopped.value) == f"cancelled: {len(found)} of 6 requests are answered"
        for position, answer in found.items():
            assert answer.tolist() == expected[position].tolist()
        carried.append(len(found))
    assert carried[0] == 0 and carried == sorted(carried) and carried[-1] > 1
    never = generate(MODEL, params, some_requests(), settings, VOCAB, cancel=lambda: False)
    assert [a.tolist() for a in never] == [e.tolist() for e in expected]


def test_answers_keep_to_their_masks(params):
    answers = generate(MODEL, params, some_requests() * 4, Sampling(seed=1), VOCAB)
    for request, answer in zip(some_requests() * 4, answers, strict=True):
        for entry, token in zip(request.mask, answer, strict=False):
            assert token in allowed(entry)
        assert len(answer) == request.new or answer[-1] == VOCAB.eos
        assert (answer[:-1] != VOCAB.eos).all()


@pytest.mark.parametrize("may_be_empty", [True, False])
def test_answers_that_may_not_be_empty_are_not(params, may_be_empty):
    prompt = np.array([VOCAB.bos, 1, 2])
    requests = [Request(prompt, max_new=4, may_be_empty=may_be_empty) for _ in range(128)]
    settings = Sampling(temperature=50.0)  # nearly uniform: EOS is one of a few dozen
    answers = generate(MODEL, params, requests, settings, VOCAB, batch_size=128)
    assert any(a[0] == VOCAB.eos for a in answers) == may_be_empty
    assert any(VOCAB.eos in a[1:] for a in answers)


def test_golden_masks_hold_at_every_offset_and_nothing_follows_eos():
    vocab = vocab_lib.released()

    config = TransformerConfig(vocab.size, 8, 8, 1, 1, 1, 2, scan_layers=False)
    cases = json.loads((conftest.GOLDEN / "processing.json").read_text())["constraints"]
    asked = [
        Request(image_prompt(vocab=vocab), None, image_mask(case["h"], case["w"], vocab))
        for case in cases
    ]
    zeros = {"lm_head": {"kernel": jnp.zeros((8, config.padded_vocab_size))}}
    answers = generate(Blind(config), zeros, asked, Sampling(), vocab)
    for case, answer in zip(cases, answers, strict=True):
        end = case["allowed"].index(vocab.eos) + 1
        assert len(answer) == end
        for expected, token in zip(case["allowed"][:end], answer, strict=True):
            assert vocab.is_visual(token) if expected == "visual" else token == expected


def test_frequencies_on_a_model_match_the_exact_probabilities(params):
    n, guidance, top_k = 4096, 2.0, 8
    prompt, negative = image_prompt(3, 1), image_prompt()
    mask = np.array([-1, -1], np.int32)
    asked = [Request(prompt, negative, mask) for _ in range(n)]
    settings = Sampling(temperature=1.5, guidance=guidance, top_k=top_k, seed=3)
    answers = np.stack(generate(MODEL, params, asked, settings, VOCAB, batch_size=n))
    codes = VOCAB.codes(answers)

    def exact(prompt, negative):
        scores = scores_of(params, prompt, negative, guidance)
        scores = scores[VOCAB.visual_start : VOCAB.visual_end]
        scores[scores < np.sort(scores)[-top_k]] = -np.inf
        p = np.exp((scores - scores.max()) / 1.5)
        return p / p.sum()

    assert abs(chi_square(np.bincount(codes[:, 0], minlength=12), exact(prompt, negative))) < 4
    first = np.bincount(codes[:, 0]).argmax()
    token = VOCAB.visual_ids([first])
    second = exact(np.append(prompt, token), np.append(negative, token))
    counts = np.bincount(codes[codes[:, 0] == first, 1], minlength=12)
    assert counts.sum() > 300
    assert abs(chi_square(counts, second)) < 4
    # The second token's distribution is not the first's, so the test can tell them apart.
    assert np.abs(second - exact(prompt, negative)).sum() > 0.3


def on_mesh(params, mesh):
    abstract = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return jax.device_put(params, sharding.state_shardings(abstract, mesh)["params"])


@pytest.mark.parametrize("mesh_sizes", [(2, 2, 1, 2), (1, 4, 2, 1)])
def test_a_mesh_gives_the_tokens_of_one_device(params, mesh_sizes):
    settings = Sampling(temperature=1.0, guidance=3.0, top_k=9, seed=5)
    expected = generate(MODEL, params, some_requests(), settings, VOCAB)
    mesh = sharding.make_mesh(sharding.MeshConfig(*mesh_sizes))
    sharded = on_mesh(params, mesh)
    streamed = {}

    def stream(request, tokens):
        streamed.setdefault(request, []).extend(tokens.tolist())

    with jax.set_mesh(mesh):
        answers = generate(MODEL, sharded, some_requests(), settings, VOCAB)
        generate(MODEL, sharded, some_requests(), settings, VOCAB, stream=stream)
    assert [a.tolist() for a in answers] == [a.tolist() for a in expected]
    assert [streamed[i] for i in range(len(answers))] == [a.tolist() for a in answers]


def test_the_mesh_as_an_argument_is_the_mesh_that_is_set(params):
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 1, 2))
    sharded, asked = on_mesh(params, mesh), some_requests()[:1]
    settings = Sampling(temperature=1.0, guidance=3.0, top_k=9, seed=5)
    given, under = [], []
    (answer,) = generate(MODEL, sharded, asked, settings, VOCAB, mesh, progress=given.append)
    assert jax.sharding.get_abstract_mesh().empty
    with jax.set_mesh(mesh):
        (expected,) = generate(MODEL, sharded, asked, settings, VOCAB, progress=under.append)
    assert answer.tolist() == expected.tolist()
    # One request is one row, unless rows are a multiple of data x fsdp.
    assert given[0] == under[0] and "1 requests in 4 rows" in given[0]


def test_the_loop_stops_when_every_row_is_finished():
    config = dataclasses.replace(MODEL.config, scan_layers=False)
    head = jnp.zeros((32, MODEL.config.padded_vocab_size)).at[:, VOCAB.eos].set(9)
    asked = [Request(np.array([VOCAB.bos]), max_new=500)] * 3
    found = answers(Blind(config), {"lm_head": {"kernel": head}}, asked, Sampling(), VOCAB)
    assert [answer.tokens.tolist() for answer in found] == [[VOCAB.eos]] * 3
    assert [answer.passes for answer in found] == [1] * 3


@pytest.mark.parametrize(
    "request_, words",
    [
        (Request(image_prompt(*range(19)), None, image_mask(9, 9)), "115 tokens.*23.*93.*100"),
        (Request(np.array([], np.int32), max_new=3), "Request 0: the prompt is empty"),
        (Request(np.array([VOCAB.size]), max_new=3), "Request 0: the prompt has id 40"),
        (Request(np.array([0])), "neither"),
        (Request(np.array([0]), max_new=0), "0 new tokens"),
    ],
)
def test_bad_requests_are_refused_before_any_work(request_, words):
    with pytest.raises(ValueError, match=words):
        generate(MODEL, None, [request_], Sampling(), VOCAB, max_context=100)


def without_counts(lines):
    """The lines without those that depend on how long compiling took."""
    return [line for line in lines if "requests answered" not in line]


def test_cache_size_and_progress(params):
    for quantized in (False, True):
        cache = KVCache.zeros(MODEL.config, 6, 10, quantized)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
        assert cache_bytes(MODEL.config, 6, 10, quantized) == size
    lines = []
    generate(MODEL, params, some_requests(), Sampling(), VOCAB, progress=lines.append)
    lines = without_counts(lines)
    assert "cache" in lines[0] and "MiB" in lines[0] and "tokens per second" in lines[1]


def test_progress_counts_answered_requests(params, monkeypatch):
    monkeypatch.setattr(engine, "Progress", functools.partial(Progress, every_s=0.0))
    lines, asked = [], some_requests()
    generate(MODEL, params, asked, Sampling(), VOCAB, batch_size=1, progress=lines.append)
    counts = [line.partition(", about")[0] for line in lines if ", about" in line]
    assert counts == [
        *(f"batch 1/2, requests answered: {n} of 4" for n in (1, 2, 3, 4)),
        *(f"batch 2/2, requests answered: {n} of 2" for n in (1, 2)),
    ]


def test_a_program_is_announced_once_and_its_speed_says_so(params, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "_known", set())
    lines = []
    for _ in range(2):
        generate(MODEL, params, some_requests()[:1], Sampling(), VOCAB, progress=lines.append)
    found = ["beside compiling" in line for line in without_counts(lines)]
    assert found == [False, True, False, False]
    found = [record.message.partition(", ")[2][:8] for record in caplog.records]
    assert found == ["reading ", "decoding"]
