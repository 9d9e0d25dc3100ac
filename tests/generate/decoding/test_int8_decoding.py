"""Decoding with int8 weights and an int8 cache: what is stored, what is read, and how it loads."""

import dataclasses
import json

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import STEP, TWO_LAYERS, random_weights, save_language_run

from emu3_jax import sharding
from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import Request, Sampling, generate, modalities
from emu3_jax.interop import bundle as bundle_lib
from emu3_jax.interop.language import language_model
from emu3_jax.models.language import int8
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sequence import Grammar, allowed_after_img
from emu3_jax.text import ByteTokenizer
from emu3_jax.train import weights

VOCAB = vocab_lib.small(text_size=20, codebook_size=12)
MODEL = Transformer(TransformerConfig(VOCAB.size, vocab_multiple=16, **TWO_LAYERS))


@pytest.fixture(scope="module")
def params():
    """Weights large enough for distributions that are far from uniform."""
    boxed = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, nn.meta.unbox(boxed))


def requests():
    """Images of several sizes, with and without guidance, and a text."""

    def prompt(*text):
        return np.array([VOCAB.bos, *text, VOCAB.boi, 7, VOCAB.img], np.int32)

    def mask(h, w):
        return allowed_after_img(VOCAB, "image", 1, h, w)

    return [
        Request(prompt(1, 2, 3), prompt(), mask(2, 3)),
        Request(prompt(*range(19)), prompt(4), mask(3, 4)),
        Request(prompt(9), None, mask(3, 2)),
        Request(np.array([VOCAB.bos, 3, 4]), max_new=5),
    ]


def test_what_is_written_is_read_within_half_a_step():
    config = dataclasses.replace(MODEL.config, num_layers=1, scan_layers=False)
    whole = KVCache.zeros(config, rows=3, slots=12, quantized=True)
    rng = np.random.default_rng(0)
    k_RSKH, v_RSKH = rng.standard_t(3, (2, 3, 4, 2, 8)).astype(np.float32)
    k_RSKH[0, 1, 0] = 0
    of_layer = KVCache(*(x[0] for x in whole))
    new = jax.tree.map(lambda x: (x,), of_layer.stored(k_RSKH, v_RSKH))
    run_RS = np.array([[0, 1, 2, 3], [5, 6, 7, 8], [2, 3, 4, 5]])
    each_RS = np.array([[7, 1, 4, 0], [5, 6, 8, 2], [3, 9, 4, 5]])
    for write, positions_RS in (("write_run", run_RS), ("write_each", each_RS)):
        written = getattr(whole, write)(new, positions_RS)
        moved = written.put(written.take(np.array([[1]]), 12), np.array([[2]]), np.array([[0]]))
        for cache, rows in ((written, (0, 1, 2)), (moved, (0, 1, 1))):
            for row, of in enumerate(rows):
                for s, slot in enumerate(positions_RS[of]):
                    for numbers, scales, exact_RSKH in (
                        (cache.k, cache.k_scale, k_RSKH),
                        (cache.v, cache.v_scale, v_RSKH),
                    ):
                        exact_KH = exact_RSKH[of, s].astype(np.float64)
                        scale_K = np.asarray(scales[0][row, :, slot])
                        near_KH = np.asarray(numbers[0][row, :, slot], np.float64)
                        near_KH *= scale_K[:, None]
                        np.testing.assert_allclose(scale_K, abs(exact_KH).max(-1) / 127, rtol=1e-6)
                        # The scale and the quotient, up to 127, are rounded once each.
                        most_K = scale_K * (0.5 + 127 * 4 * 2.0**-24)
                        assert (abs(near_KH - exact_KH) <= most_K[:, None]).all()


@pytest.mark.parametrize("decoder, window", [("jacobi", 5), ("jacobi", 16), ("zipar", 4)])
def test_greedy_tokens_do_not_depend_on_the_decoder(params, first_device, decoder, window):
    stored = language_model.quantized(MODEL.config, params, first_device)
    greedy = dict(temperature=0, guidance=2.0)
    right = generate(MODEL, stored, requests(), Sampling(**greedy), VOCAB, quantized_cache=True)
    settings = Sampling(**greedy, decoder=decoder, window=window)
    found = generate(MODEL, stored, requests(), settings, VOCAB, quantized_cache=True)
    assert [a.tolist() for a in found] == [a.tolist() for a in right]
    floats = generate(MODEL, params, requests(), Sampling(**greedy), VOCAB)
    assert len({str(a.tolist()) for a in floats}) == len(requests())


@pytest.mark.parametrize("mesh_sizes", [(2, 2, 1, 2), (1, 4, 2, 1)])
def test_a_mesh_gives_the_tokens_of_one_device(params, first_device, mesh_sizes):
    settings = Sampling(guidance=3.0, top_k=9, seed=5)
    stored = language_model.quantized(MODEL.config, params, first_device)
    expected = generate(MODEL, stored, requests(), settings, VOCAB, quantized_cache=True)
    mesh = sharding.make_mesh(sharding.MeshConfig(*mesh_sizes))
    sharded = language_model.quantized(MODEL.config, params, mesh)
    jax.tree.map(np.testing.assert_array_equal, sharded, stored)
    answers = generate(MODEL, sharded, requests(), settings, VOCAB, mesh, quantized_cache=True)
    assert [a.tolist() for a in answers] == [a.tolist() for a in expected]


@pytest.fixture(scope="module")
def nano():
    """The shipped model, and documents of captions and images that it drew."""
    bundle, _ = weights.load_language_model("nano")
    captions = ["person biking: medium skin tone", "red heart", "cat face", "waving hand: light"]
    options = modalities.Options(Sampling(seed=1))
    codes = modalities.text_to_image(bundle, captions, 8, 8, options)
    prompts = [bundle.grammar.image_prompt(caption, 8, 8) for caption in captions]
    return bundle, list(zip(prompts, codes, strict=True))


def nats_of(bundle, documents, params, quantized_cache):
    """Mean nats of the codes, read through a cache."""
    layout = bundle.grammar.visual_layout("image", 1, 8, 8)
    total = []
    for prompt, codes in documents:
        answer = layout.copy()
        answer[layout < 0] = bundle.vocab.visual_start + codes.ravel()
        ids = np.concatenate([prompt, answer])[None]
        # What is read together is stored as the cache stores it.
        cache = KVCache.zeros(bundle.model.config, 1, 1, quantized_cache)
        positions, none = np.arange(ids.shape[1] - 1)[None], np.zeros((1, 1), bool)

        @jax.jit
        def log_p(params, tokens, positions=positions, cache=cache, none=none):
            with int8.reading():
                x, _ = bundle.model.apply(
                    {"params": params}, tokens, positions, cache, none, method="read"
                )
            return jax.nn.log_softmax(bundle.model.apply({"params": params}, x, method="logits"))

        found = np.asarray(log_p(params, ids[:, :-1]))[0]
        at = len(prompt) - 1 + np.flatnonzero(layout < 0)
        total.append(-found[at, ids[0, 1:][at]].mean(dtype=np.float64))
    return np.mean(total)


def test_the_shipped_model_loses_less_than_a_hundredth_of_a_nat(nano, first_device):
    bundle, documents = nano
    params = bundle.variables["params"]
    stored, _ = weights.load_language_model("nano", mesh=first_device, quantized=True)
    floats = nats_of(bundle, documents, params, False)
    assert 1 < floats < 6
    both = nats_of(bundle, documents, stored.variables["params"], True)
    assert 0 < abs(both - floats) < 0.01
    assert 0 < abs(nats_of(bundle, documents, params, True) - floats) < 0.01
    size = sum(x.nbytes for x in jax.tree.leaves(params["layers"]))
    small = sum(x.nbytes for x in jax.tree.leaves(stored.variables["params"]["layers"]))
    assert small < 0.27 * size


def assert_rounded(stored, floats):
    """Kernels of layers are the int8 of the floats, layer by layer; all else is equal."""
    stored, floats = (flax.traverse_util.flatten_dict(x) for x in (stored, floats))
    kernels = {path for path in floats if path[0] == "layers" and path[-1] == int8.KERNEL}
    assert len(kernels) == 7
    assert stored.keys() - floats.keys() == {(*path[:-1], int8.SCALE) for path in kernels}
    for path, exact in floats.items():
        if path not in kernels:
            np.testing.assert_array_equal(stored[path], exact)
            continue
        scale = stored[*path[:-1], int8.SCALE]
        axes = tuple(i for i, size in enumerate(scale.shape) if size == 1 and i)
        q, s = int8.rounded(jnp.asarray(exact), axes)
        np.testing.assert_array_equal(stored[path], q)
        np.testing.assert_allclose(scale, s, rtol=2.0**-22)  # a quotient may become a product
        assert stored[path].dtype == np.int8 and scale.dtype == np.float32


def test_weights_become_int8_kernel_by_kernel(params, tmp_path, monkeypatch):
    language_model.save(tmp_path, MODEL.config, params)
    placed, make = [], jax.make_array_from_callback

    def noted(shape, *rest):
        array = make(shape, *rest)
        placed.append(array.size)
        return array

    monkeypatch.setattr(jax, "make_array_from_callback", noted)
    mesh = sharding.make_mesh(sharding.MeshConfig(1, 4, 1, 2))
    config, stored = language_model.load(tmp_path, mesh=mesh, quantized=True)
    monkeypatch.undo()
    largest = MODEL.config.hidden_size * MODEL.config.intermediate_size
    # What comes from the host is a table, which stays as it is, or one kernel of one layer.
    assert len(placed) == 3 + 9 * MODEL.config.num_layers
    table = config.hidden_size * config.padded_vocab_size
    assert all(size == table or size <= largest for size in placed)
    assert_rounded(stored, language_model.load(tmp_path)[1])
    tokens = np.zeros((1, 4), np.int32)
    abstract = int8.abstract(lambda: Transformer(config).init(jax.random.key(0), tokens))
    layouts = sharding.state_shardings(abstract, mesh)
    assert jax.tree.map(lambda x: x.sharding, stored) == layouts


def test_a_run_becomes_int8_as_well(tmp_path, first_device):
    vocab = vocab_lib.small(256, 12)
    model = Transformer(TransformerConfig(vocab.size, vocab_multiple=16, **TWO_LAYERS))
    variables = random_weights(model, jnp.zeros((1, 4), jnp.int32), 0.5)
    bundle_lib.save_language(tmp_path, bundle_lib.Language(vocab, Grammar(vocab, ByteTokenizer())))
    save_language_run(tmp_path, model.config, variables)
    floats, label = weights.load_language_model(tmp_path, mesh=first_device)
    found, again = weights.load_language_model(tmp_path, mesh=first_device, quantized=True)
    assert label == again == f"{tmp_path} at step {STEP}"
    assert_rounded(found.variables["params"], floats.variables["params"])


def test_what_is_quantized_already_is_refused(params, first_device, tmp_path):
    stored = language_model.quantized(MODEL.config, params, first_device)
    with pytest.raises(ValueError, match="^The model has quantized weights already; .* floats.$"):
        language_model.quantized(MODEL.config, stored, first_device)
    language_model.save(tmp_path, MODEL.config, params)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has quantized weights already; .*quantization_config"):
        language_model.load(tmp_path, mesh=first_device, quantized=True)
