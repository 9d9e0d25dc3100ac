"""Chunked cross-entropy against the plain one written in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from emu3_jax import sharding
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import loss
from emu3_jax.train.loss import chunked_cross_entropy

B, S, D, VOCAB, PADDED = 4, 24, 16, 50, 64


def _inputs():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(B, S, D)).astype(np.float32),
        rng.normal(size=(D, PADDED)).astype(np.float32),
        rng.integers(0, VOCAB, (B, S)).astype(np.int32),
        rng.choice([0.0, 0.5, 1.0], (B, S)).astype(np.float32),
    )


def _plain(x, kernel, targets, weights, z_loss):
    """Loss, nll and gradients of the loss in float64, all logits at once."""
    x, kernel, weights = (a.astype(np.float64) for a in (x, kernel, weights))
    logits = x @ kernel[:, :VOCAB]
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    loss = (weights * (nll + z_loss * log_z**2)).sum() / weights.sum()
    probs = np.exp(logits - log_z[..., None])
    g = probs * (1 + 2 * z_loss * log_z)[..., None] - np.eye(VOCAB)[targets]
    g *= (weights / weights.sum())[..., None]
    grad_kernel = np.zeros(kernel.shape)
    grad_kernel[:, :VOCAB] = np.einsum("bsd,bsv->dv", x, g)
    return loss, nll, g @ kernel[:, :VOCAB].T, grad_kernel


def _chunked(x, kernel, targets, weights, z_loss, chunk):
    def value_of(x, kernel):
        ce = chunked_cross_entropy(
            x, kernel, targets, weights, vocab_size=VOCAB, chunk_tokens=chunk, z_loss=z_loss
        )
        return ce.total / ce.weight, ce.nll

    (value, nll), grads = jax.jit(jax.value_and_grad(value_of, (0, 1), has_aux=True))(x, kernel)
    return value, nll, *grads


def _assert_equal(found, expected):
    # Sums of at most 64 float32 terms of order 1..10: 2e-5 is about 10 ulp of the largest.
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunk, z_loss", [(1, 0.0), (7, 0.01), (8, 0.0), (1000, 0.01)])
def test_equals_the_plain_one_in_value_and_gradient(chunk, z_loss):
    inputs = _inputs()
    _assert_equal(_chunked(*inputs, z_loss, chunk), _plain(*inputs, z_loss))


def test_padded_vocabulary_gets_no_probability_and_no_gradient():
    x, kernel, targets, weights = _inputs()
    kernel[:, VOCAB:] = 1e3
    found = _chunked(x, kernel, targets, weights, 0.0, 8)
    _assert_equal(found, _plain(x, kernel, targets, weights, 0.0))
    np.testing.assert_array_equal(found[3][:, VOCAB:], 0.0)


def test_no_more_than_a_chunk_of_logits_exists_in_forward_and_backward():
    x, kernel, targets, weights = _inputs()

    def value_of(x, kernel):
        return chunked_cross_entropy(
            x, kernel, targets, weights, vocab_size=VOCAB, chunk_tokens=4
        ).total

    def rows(jaxpr):
        for equation in jaxpr.eqns:
            for value in equation.outvars:
                if value.aval.shape[-1:] == (PADDED,) and value.aval.shape != (D, PADDED):
                    yield value.aval.size // PADDED
            for inner in jaxprs_in_params(equation.params):
                yield from rows(inner)

    jaxpr = jax.make_jaxpr(jax.grad(value_of, (0, 1)))(x, kernel).jaxpr
    assert max(rows(jaxpr)) == 4  # over all rows of the batch


def test_the_gradient_scales_and_nothing_flows_through_the_nll():
    x, kernel, targets, weights = _inputs()

    def value_of(x, scale):
        ce = chunked_cross_entropy(x, kernel, targets, weights, vocab_size=VOCAB, chunk_tokens=7)
        return scale * ce.total + jnp.sum(ce.nll)

    def gradient(scale):
        return jax.grad(value_of)(x, scale)

    np.testing.assert_allclose(gradient(-0.5), -0.5 * gradient(1.0), rtol=1e-6)
    *_, expected, _ = _plain(x, kernel, targets, weights, 0.0)
    _assert_equal([gradient(1.0) / weights.sum()], [expected])


def test_all_weights_zero_gives_zero_sums():
    x, kernel, targets, weights = _inputs()
    ce = chunked_cross_entropy(x, kernel, targets, weights * 0, vocab_size=VOCAB)
    assert ce.total == 0 and ce.weight == 0 and np.isfinite(ce.nll).all()


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=2, tensor=4, fsdp=1),
        MeshConfig(data=2, context=2, tensor=2, fsdp=1),
        MeshConfig(fsdp=4, context=2),
    ],
    ids=["vocab over tensor", "sequence over context", "positions shared"],
)
@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_mesh_changes_nothing(mesh, group, monkeypatch):
    monkeypatch.setattr(loss, "GROUP", group)
    mesh = sharding.make_mesh(mesh)
    x, kernel, targets, weights = _inputs()
    with jax.set_mesh(mesh):
        put = jax.device_put
        batch = sharding.batch_sharding(mesh)
        args = (
            put(x, jax.NamedSharding(mesh, sharding.partition_spec("batch", "sequence", None))),
            put(kernel, jax.NamedSharding(mesh, sharding.partition_spec("embed", "vocab"))),
            put(targets, batch),
            put(weights, batch),
        )
        _assert_equal(_chunked(*args, 0.01, 5), _plain(*_inputs(), 0.01))


def test_bfloat16_gradients_are_good_to_their_digits():
    x, kernel, targets, weights = _inputs()
    x = jnp.asarray(x, jnp.bfloat16)
    *_, dx, dkernel = _chunked(x, kernel, targets, weights, 0.0, 16)
    rounded = [np.float32(jnp.asarray(a, jnp.bfloat16)) for a in (x, kernel)]
    *_, dx_plain, dkernel_plain = _plain(*rounded, targets, weights, 0.0)
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)
    # Six chunks are added in bfloat16, behind gradients of logits in bfloat16: each rounds to 2^-9.
    for found, plain in ((dx, dx_plain), (dkernel, dkernel_plain)):
        error = np.linalg.norm(np.float32(found) - plain) / np.linalg.norm(plain)
        assert error < 7 * 2.0**-9


def test_unrolling_changes_nothing():
    x, kernel, targets, weights = _inputs()

    def total(unroll):
        options = dict(vocab_size=VOCAB, chunk_tokens=40, unroll=unroll)
        return chunked_cross_entropy(x, kernel, targets, weights, **options).total

    np.testing.assert_allclose(total(True), total(False), rtol=1e-6)
    text = jax.jit(total, static_argnums=0).lower(True).as_text()
    assert "while" not in text


def test_bfloat16_inputs_give_float32_losses():
    x, kernel, targets, weights = _inputs()
    ce = chunked_cross_entropy(
        jnp.asarray(x, jnp.bfloat16), kernel, targets, weights, vocab_size=VOCAB
    )
    assert ce.nll.dtype == jnp.float32
    _, nll, *_ = _plain(
        np.float32(jnp.asarray(x, jnp.bfloat16)),
        np.float32(jnp.asarray(kernel, jnp.bfloat16)),
        targets,
        weights,
        0.0,
    )
    np.testing.assert_allclose(ce.nll, nll, atol=1e-4)


def test_many_chunks_in_bfloat16_add_up_as_one():
    rng = np.random.default_rng(1)
    tokens = 4096
    x = jnp.asarray(1 + 0.1 * rng.normal(size=(1, tokens, D)), jnp.bfloat16)
    kernel = 0.1 * rng.normal(size=(D, PADDED)).astype(np.float32)
    targets = np.full((1, tokens), 3, np.int32)  # all push the same column the same way
    weights = np.ones((1, tokens), np.float32)
    *_, many = _chunked(x, kernel, targets, weights, 0.0, 1)
    *_, one = _chunked(x, kernel, targets, weights, 0.0, tokens)
    # Sums of 4,096 float32 terms of one sign: half an ulp a term at worst.
    np.testing.assert_allclose(many[:, 3], one[:, 3], rtol=tokens * 2**-24)
