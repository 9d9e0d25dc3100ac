"""Chunked cross-entropy against the plain one written in float64 numpy."""

import contextlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from emu3_jax import sharding
from emu3_jax.models.language import cross_entropy
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.sharding import MeshConfig

B, S, D, VOCAB, PADDED = 4, 24, 16, 50, 64


def _inputs():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(B, S, D)).astype(np.float32),
        rng.normal(size=(D, PADDED)).astype(np.float32),
        rng.integers(0, VOCAB, (B, S)).astype(np.int32),
        rng.choice([0.0, 0.5, 1.0], (B, S)).astype(np.float32),
    )


def _plain(x, kernel, targets, weights, z_loss, by_total=None, by_nll=0.0):
    """Mean loss, nll, and the gradients of a loss by x and by the matrix, in float64.

    `by_total` (default: 1 / weight, the mean's) and `by_nll` [B, S] are the loss's by those two.
    """
    x, kernel, weights = (a.astype(np.float64) for a in (x, kernel, weights))
    by_total = 1 / weights.sum() if by_total is None else by_total
    logits = x @ kernel[:, :VOCAB]
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    mean = (weights * (nll + z_loss * log_z**2)).sum() / weights.sum()
    probs = np.exp(logits - log_z[..., None])
    by_log_z = by_total * weights * (1 + 2 * z_loss * log_z) + by_nll
    by_target = by_total * weights + by_nll
    g = probs * by_log_z[..., None] - np.eye(VOCAB)[targets] * by_target[..., None]
    grad_kernel = np.zeros(kernel.shape)
    grad_kernel[:, :VOCAB] = np.einsum("bsd,bsv->dv", x, g)
    return mean, nll, g @ kernel[:, :VOCAB].T, grad_kernel


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


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _gradient_of(loss, chunk=4):
    """(x, kernel) -> gradients of loss(total, nll), jitted."""
    _, _, targets, weights = _inputs()

    def value_of(x, kernel):
        options = dict(vocab_size=VOCAB, chunk_tokens=chunk)
        ce = chunked_cross_entropy(x, kernel, targets, weights, **options)
        return loss(ce.total, ce.nll), ce.nll.mean()

    return jax.jit(jax.grad(value_of, (0, 1), has_aux=True))


@pytest.mark.parametrize("nll_in_loss", [False, True])
def test_no_more_than_a_chunk_of_logits_exists_in_forward_and_backward(nll_in_loss):
    x, kernel, *_ = _inputs()
    gradient = _gradient_of(lambda total, nll: total + nll_in_loss * jnp.sum(nll**2))
    shapes = [
        value.aval.shape
        for equation in _equations(jax.make_jaxpr(gradient)(x, kernel).jaxpr)
        for value in equation.outvars
    ]
    rows = [math.prod(s[:-1]) for s in shapes if s[-1:] == (PADDED,) and s != (D, PADDED)]
    assert max(rows) == 4  # over all rows of the batch


@pytest.mark.parametrize(
    "loss, products",
    [
        (lambda total, nll: total, 3),
        (lambda total, nll: total + jax.lax.stop_gradient(jnp.max(nll)), 3),
        (lambda total, nll: jnp.sum(nll**2), 4),
        (lambda total, nll: total + jnp.sum(nll**2), 6),
    ],
    ids=["total", "nll as a metric", "nll", "both"],
)
def test_logits_are_computed_again_only_for_the_gradient_of_the_nll(loss, products):
    x, kernel, *_ = _inputs()
    compiled = _gradient_of(loss).lower(x, kernel).compile()
    assert len(re.findall(r" dot\(", compiled.as_text())) == products


MESHES = [
    MeshConfig(data=2, tensor=4, fsdp=1),
    MeshConfig(data=2, context=2, tensor=2, fsdp=1),
    MeshConfig(fsdp=4, context=2),
]
MESH_NAMES = ["vocab over tensor", "sequence over context", "positions shared"]


def _on(mesh):
    """The inputs laid out on a mesh."""
    layouts = (("batch", "sequence", None), ("embed", "vocab"), *(("batch", "sequence"),) * 2)
    specs = [sharding.partition_spec(*names) for names in layouts]
    return jax.device_put(_inputs(), tuple(jax.NamedSharding(mesh, spec) for spec in specs))


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("mesh", [None, *MESHES], ids=["one device", *MESH_NAMES])
def test_any_loss_of_total_and_nll_has_its_gradient(mesh, scale):
    by_nll = np.random.default_rng(1).normal(size=(B, S)).astype(np.float32)
    by_nll[:, ::3] = 0.0

    def value_of(x, kernel, targets, weights):
        options = dict(vocab_size=VOCAB, chunk_tokens=5, z_loss=0.01)
        ce = chunked_cross_entropy(x, kernel, targets, weights, **options)
        return scale * ce.total + jnp.sum(by_nll * ce.nll)

    mesh = mesh and sharding.make_mesh(mesh)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        found = jax.jit(jax.grad(value_of, (0, 1)))(*(_on(mesh) if mesh else _inputs()))
    *_, dx, dkernel = _plain(*_inputs(), 0.01, by_total=scale, by_nll=by_nll)
    _assert_equal(found, (dx, dkernel))


def test_a_preference_loss_on_the_likelihoods_of_rows_has_its_gradient():
    x, kernel, targets, weights = _inputs()  # rows 0 and 1 are chosen over rows 2 and 3

    def preference(nll_BS):
        chosen, rejected = jnp.split(jnp.sum(nll_BS * (weights > 0), axis=1), 2)
        return -jnp.mean(jax.nn.log_sigmoid(0.1 * (rejected - chosen)))

    def chunked(x, kernel):
        options = dict(vocab_size=VOCAB, chunk_tokens=7)
        return preference(chunked_cross_entropy(x, kernel, targets, weights, **options).nll)

    def plain(x, kernel):
        log_p = jax.nn.log_softmax(jnp.matmul(x, kernel[:, :VOCAB], precision="highest"))
        return preference(-jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])

    found = jax.value_and_grad(chunked, (0, 1))(x, kernel)
    expected = jax.value_and_grad(plain, (0, 1))(x, kernel)
    assert np.abs(expected[1][0]).max() > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected
    )


def test_weights_have_a_gradient():
    x, kernel, targets, weights = _inputs()

    def total(weights, z_loss):
        options = dict(vocab_size=VOCAB, chunk_tokens=7, z_loss=z_loss)
        return chunked_cross_entropy(x, kernel, targets, weights, **options).total

    # The total is linear in each of them.
    for z_loss in (0.0, 0.01):
        gradient = jax.grad(total)(weights, z_loss)
        one = np.zeros((B, S), np.float32)
        one[1, 3] = 1.0
        np.testing.assert_allclose(gradient[1, 3], total(one, z_loss), rtol=1e-6)
        np.testing.assert_allclose(np.sum(gradient * weights), total(weights, z_loss), rtol=1e-5)


def test_all_weights_zero_gives_zero_sums():
    x, kernel, targets, weights = _inputs()
    ce = chunked_cross_entropy(x, kernel, targets, weights * 0, vocab_size=VOCAB)
    assert ce.total == 0 and ce.weight == 0 and np.isfinite(ce.nll).all()


@pytest.mark.parametrize("mesh", MESHES, ids=MESH_NAMES)
@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_mesh_changes_nothing(mesh, group, monkeypatch):
    monkeypatch.setattr(cross_entropy, "GROUP", group)
    mesh = sharding.make_mesh(mesh)
    with jax.set_mesh(mesh):
        _assert_equal(_chunked(*_on(mesh), 0.01, 5), _plain(*_inputs(), 0.01))


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
