"""Documents of texts and images: their law, a reference step by step, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_models import TWO_LAYERS

from emu3_jax import sharding
from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import Request, Sampling, generate
from emu3_jax.generate.decoding import constraints
from emu3_jax.generate.open_ended import InterleavedOptions, interleave
from emu3_jax.generate.open_ended.continuing import Continuing
from emu3_jax.generate.open_ended.interleaving import warning, write
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sequence import Document, Grammar, Image, Text
from emu3_jax.text import ByteTokenizer

VOCAB = vocab_lib.small(text_size=256, codebook_size=12)
GRAMMAR = Grammar(VOCAB, ByteTokenizer())
MODEL = Transformer(TransformerConfig(VOCAB.size, vocab_multiple=16, **TWO_LAYERS))
CONTEXT = 96
SIZES = ((2, 2), (2, 3), (12, 1), (1, 2))
GREEDY = Sampling(temperature=0)


@functools.cache
def bundle(seed=1):
    """A random model that often draws BOI, and sometimes EOS."""
    boxed = jax.jit(MODEL.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, nn.meta.unbox(boxed))
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, VOCAB.boi].multiply(2.5)
    return Bundle(MODEL, {"params": params}, VOCAB, GRAMMAR, max_context=CONTEXT)


@jax.jit
def whole_forward(params, ids_BS):
    return jax.nn.log_softmax(MODEL.apply({"params": params}, ids_BS))


def scores_of(ids, seed=1):
    """Log-probabilities of the next token by a whole forward pass."""
    padded = np.zeros((1, CONTEXT + 8), np.int32)  # causal: what follows is not seen
    padded[0, : len(ids)] = ids
    return np.asarray(whole_forward(bundle(seed).variables["params"], padded)[0, len(ids) - 1])


def head_of(size):
    return [*GRAMMAR.tokenizer.encode(f"{size[0]}*{size[1]}"), VOCAB.img]


def fits(size, begin):
    """Whether an image fits the context behind `begin` tokens, the last of which is BOI."""
    return begin + len(head_of(size)) + size[0] * (size[1] + 1) + 2 - 1 <= CONTEXT


def best(ids, allowed, seed, negative=None, guidance=1.0):
    scores = scores_of(ids, seed)
    if negative is not None:
        without = scores_of(negative, seed)
        scores = without + guidance * (scores - without)
    return max(sorted(allowed), key=lambda token: scores[token])


def reference(before, options, seed):
    """The greedy document token by token, each by a whole forward pass under the grammar."""
    ids, texts, images = list(GRAMMAR.prompt(before)), 0, 0
    medias = [segment for segment in before if isinstance(segment, Image)]
    while True:
        if texts == options.max_new or len(ids) > CONTEXT:
            return ids
        allowed = {*range(256), VOCAB.eos}
        if images < options.max_images and any(fits(size, len(ids) + 1) for size in SIZES):
            allowed.add(VOCAB.boi)
        ids.append(best(ids, allowed, seed))
        if ids[-1] == VOCAB.eos:
            return ids
        if ids[-1] != VOCAB.boi:
            texts += 1
            continue
        sizes, at = [size for size in SIZES if fits(size, len(ids))], 0
        while VOCAB.img != ids[-1]:
            ids.append(best(ids, {head_of(size)[at] for size in sizes}, seed))
            sizes = [size for size in sizes if head_of(size)[at] == ids[-1]]
            at += 1
        h, w = sizes[0]
        begin = len(ids)
        without = [*medias, Text(options.negative_prompt)]
        negative = list(GRAMMAR.image_prompt(without, h, w))
        for _row in range(h):
            for _ in range(w):
                other = [*negative, *ids[begin:]] if options.images.guided else None
                codes = range(VOCAB.visual_start, VOCAB.visual_end)
                ids.append(best(ids, codes, seed, other, options.images.guidance))
            ids.append(VOCAB.eol)
        ids += [VOCAB.eof, VOCAB.eoi]
        images += 1
        drawn = GRAMMAR.parse([VOCAB.bos, VOCAB.boi, *head_of((h, w)), *ids[begin:], VOCAB.eos])
        medias.append(drawn.segments[0])


def eager(before):
    """A model that begins an image at once."""
    ids = GRAMMAR.prompt(before)
    allowed = {*range(256), VOCAB.eos, VOCAB.boi}
    return bundle(next(seed for seed in range(1, 99) if best(ids, allowed, seed) == VOCAB.boi))


def picture(h, w, code=3):
    return Image(np.full((h, w), code))


@pytest.mark.parametrize(
    "entry, ids",
    [
        (constraints.TEXT_OR_IMAGE, (*range(256), VOCAB.eos, VOCAB.boi)),
        (constraints.CHOICE, (40, 49, 50, VOCAB.img)),
    ],
)
def test_a_token_follows_the_law_of_what_the_grammar_allows(entry, ids):
    prompt = GRAMMAR.prompt([Text("a"), picture(1, 2)])
    law = np.exp(scores_of(prompt).astype(np.float64)[list(ids)] / 3)
    law /= law.sum()
    choices = ids if entry == constraints.CHOICE else ()
    request = Request(prompt, forced=np.full(1, entry, np.int32), choices=choices)
    count = 4000
    sampling = Sampling(temperature=3, seed=3)
    params = bundle().variables["params"]
    answers = generate(MODEL, params, [request] * count, sampling, VOCAB, batch_size=500)
    drawn = np.concatenate(answers)
    assert set(drawn) <= set(ids)
    counts = np.array([(drawn == token).sum() for token in ids])
    assert counts[-1] > 0  # BOI, or IMG, among them
    # Cells of at least five expected draws; the others together.
    large = law * count >= 5
    seen = np.append(counts[large], counts[~large].sum())
    expected = np.append(law[large], law[~large].sum()) * count
    seen, expected = seen[expected > 0], expected[expected > 0]
    freedom = len(seen) - 1
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("decoder", ["jacobi", "zipar"])
def test_a_text_ends_behind_boi_with_every_decoder(decoder):
    prompt = GRAMMAR.prompt([Text("a")])
    mask = np.full(30, constraints.TEXT_OR_IMAGE, np.int32)
    requests = [Request(prompt, forced=mask)] * 6
    params = bundle().variables["params"]
    expected = generate(MODEL, params, requests, Sampling(seed=3), VOCAB)
    assert sum(answer[-1] == VOCAB.boi for answer in expected) > 2
    found = generate(MODEL, params, requests, Sampling(seed=3, decoder=decoder), VOCAB)
    assert [a.tolist() for a in found] == [a.tolist() for a in expected]


@pytest.mark.parametrize("seed", range(1, 7))
def test_greedy_equals_whole_forward_passes(seed):
    images = dataclasses.replace(GREEDY, guidance=2.5 if seed % 2 else 1.0)
    options = InterleavedOptions(GREEDY, images, "bad", max_images=3, max_new=24)
    before = [picture(2, 1, seed), Text("go"), picture(1, 2, 5)][: seed % 3 + 1]
    written = write(bundle(seed), before, SIZES, options)
    document = Document((*before, *written.segments))
    built = GRAMMAR.build(document).ids
    expected = reference(before, options, seed)
    assert written.is_finished == (expected[-1] == VOCAB.eos)
    assert (built if written.is_finished else built[:-1]).tolist() == expected
    assert GRAMMAR.parse(built) == document.content()


def test_a_mesh_gives_the_document_of_one_device():
    options = InterleavedOptions(GREEDY, Sampling(guidance=2.0), max_new=12)
    before = [Text("x"), picture(3, 3)]
    found = eager(before)
    expected = interleave(found, before, SIZES, options)
    assert isinstance(expected[0], Image)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, tensor=2), jax.devices()[:4])
    abstract = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    shardings = sharding.state_shardings(abstract["params"], mesh)
    params = jax.device_put(found.variables["params"], shardings)
    spread = dataclasses.replace(found, variables={"params": params})
    with jax.set_mesh(mesh):
        assert interleave(spread, before, SIZES, options) == expected


def test_documents_drawn_by_chance_read_back_and_keep_the_limits(monkeypatch):
    seen, numbers = set(), []
    original = Continuing.answer

    def counted(self, request):
        numbers.append(request.number)
        return original(self, request)

    monkeypatch.setattr(Continuing, "answer", counted)
    for number in range(8):
        options = InterleavedOptions(
            Sampling(seed=2), Sampling(seed=2, guidance=2.0, top_k=5, decoder="jacobi", window=4),
            max_images=2, max_new=40, first=number,
        )  # fmt: skip
        before = [Text("x"), picture(3, 3)]
        written = interleave(bundle(), before, SIZES, options)
        document = Document((*before, *written))
        ids = GRAMMAR.build(document).ids
        assert GRAMMAR.parse(ids) == document.content()
        assert len(ids) - 2 <= CONTEXT
        images = [segment for segment in written if isinstance(segment, Image)]
        assert len(images) <= 2
        seen |= {image.codes.shape for image in images}
        asked = len(numbers)
        assert written == interleave(bundle(), before, SIZES, options)
        del numbers[asked:]
    assert len(set(numbers)) == len(numbers)  # no two have the same draws
    assert len(seen) > 1 and seen <= set(SIZES)


def test_no_image_begins_where_none_fits():
    long = [Text("y" * 70)]  # 12x1 needs 5 + 26 tokens behind BOI, 1x2 four and five
    for number in range(6):
        options = InterleavedOptions(max_new=60, max_images=9, first=number)
        written = interleave(bundle(), long, SIZES, options)
        images = [s.codes.shape for s in written if isinstance(s, Image)]
        assert (12, 1) not in images
        assert len(GRAMMAR.build(Document((*long, *written))).ids) - 2 <= CONTEXT + 1


def test_an_image_may_end_where_the_context_does():
    # BOS, 81 letters, BOI, "2*3", IMG, 2 x (3 + EOL), EOF, EOI: one more than is read.
    assert 1 + 81 + 1 + 3 + 1 + 2 * 4 + 2 == CONTEXT + 1
    before = [Text("y" * 81)]
    written = write(eager(before), before, [(2, 3)], InterleavedOptions(GREEDY))
    assert [type(segment) for segment in written.segments] == [Image]
    assert not written.is_finished
    with pytest.raises(ValueError, match="No image fits"):
        interleave(bundle(), [Text("y" * 82)], [(2, 3)])


def test_the_second_branch_of_an_image_may_end_where_the_context_does():
    before, guided = [Text("y")], Sampling(guidance=2.0)
    options = InterleavedOptions(GREEDY, guided, "n" * 81, max_new=1)
    written = write(eager(before), before, [(2, 3)], options)
    assert [type(segment) for segment in written.segments] == [Image, Text]
    with pytest.raises(ValueError, match="No image fits"):
        longer = InterleavedOptions(images=guided, negative_prompt="n" * 82)
        interleave(bundle(), [Text("y")], [(2, 3)], longer)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"max_images": 0}, "max_images must be at least 1, not 0"),
        ({"max_new": 0}, "max_new must be at least 1 token, not 0"),
        ({"first": -1}, "first must be from 0 to 32767, not -1"),
        ({"texts": Sampling(guidance=3.0)}, "the texts of a document have guidance 1"),
        ({"texts": Sampling(whole_vocabulary=True)}, "whole_vocabulary takes the grammar off"),
    ],
)
def test_options_that_cannot_be_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        InterleavedOptions(**fields)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="There is no size for images"):
        interleave(bundle(), [Text("a")], [])
    with pytest.raises(ValueError, match="context of 96 tokens behind a prompt of 2: .* 9x9, 10x8"):
        interleave(bundle(), [Text("a")], [(9, 9), (10, 8)])
    long = InterleavedOptions(images=Sampling(guidance=2.0), negative_prompt="n" * 90)
    with pytest.raises(ValueError, match="No image fits"):
        interleave(bundle(), [Text("a")], SIZES, long)


def test_a_model_that_never_learnt_documents_is_warned_about():
    assert "trained on chat, text" in warning(("chat", "text"))
    assert not warning(None) and not warning(("document", "text"))
