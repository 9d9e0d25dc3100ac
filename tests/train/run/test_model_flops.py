"""Counting model FLOPs: products by hand, loops and branches, and whole training steps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from shrunken_twins import twin

from emu3_jax import sharding
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.config import load_config
from emu3_jax.models import cpu
from emu3_jax.models.vision.convolution import conv_2d
from emu3_jax.train import model_flops

KEY = jax.random.key(0)


def _array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _sum_of_products(x, w):
    return jnp.sum(x @ w)


def test_a_matmul_and_its_gradients():
    x, w = _array(5, 2, 3), _array(3, 4)
    once = 2 * (5 * 2) * 3 * 4
    assert model_flops.of_call(jnp.matmul, x, w) == once
    assert model_flops.of_call(jax.jit(jnp.matmul), x, w) == once
    both = jax.grad(_sum_of_products, argnums=(0, 1))
    assert model_flops.of_call(both, x, w) == 3 * once
    batched = functools.partial(jnp.einsum, "bij,bjk->bik")
    assert model_flops.of_call(batched, _array(7, 2, 3), _array(7, 3, 4)) == 2 * 7 * 2 * 3 * 4


def test_a_convolution_with_a_step_and_its_gradients():
    """Windows that touch and do not overlap: each gradient has as many products as the result."""

    def total(x, kernel):
        return jnp.sum(conv_2d(x, kernel, 2, ((0, 0), (0, 0))))

    x, kernel = _array(3, 8, 12, 5), _array(2, 2, 5, 7)
    once = 2 * (3 * 4 * 6) * 7 * (2 * 2 * 5)
    assert model_flops.of_call(total, x, kernel) == once
    assert model_flops.of_call(jax.grad(total, argnums=(0, 1)), x, kernel) == 3 * once


def test_convolutions_with_fewer_products_on_one_cpu_count_in_full():
    x, kernel = _array(1, 32, 32, 256), _array(3, 3, 256, 256)
    assert cpu.winograd_pays(x, kernel, 1)
    convolve = functools.partial(conv_2d, stride=1, padding=((1, 1), (1, 1)))
    assert model_flops.of_call(convolve, x, kernel) == 2 * 32 * 32 * 256 * 9 * 256


def test_a_mesh_that_is_set_changes_nothing():
    """Whether the work is cut by the compiler or, in a shard_map, by hand."""
    x, w = _array(16, 8), _array(8, 8)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        assert model_flops.of_call(jnp.matmul, x, w) == 2 * 16 * 8 * 8
        rows = jax.P(("data", "fsdp"))
        by_hand = jax.shard_map(jnp.matmul, in_specs=(rows, jax.P()), out_specs=rows)
        assert model_flops.of_call(by_hand, x, w) == 2 * 16 * 8 * 8


def test_loops_count_as_often_as_they_run_and_of_branches_the_dearest():
    x = _array(4, 4)
    once = 2 * 4**3
    repeated = lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=6)[0]  # noqa: E731
    assert model_flops.of_call(repeated, x) == 6 * once
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)  # noqa: E731
    assert model_flops.of_call(either, x) == 2 * once
    counted = lambda x: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c + x, x)  # noqa: E731
    assert model_flops.of_call(counted, x) == 0
    unknown = lambda x: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ x, x)  # noqa: E731
    with pytest.raises(ValueError, match="loop of unknown length"):
        model_flops.of_call(unknown, x)


def test_the_formula_for_transformers_is_what_their_step_multiplies():
    """But for the half of attention's scores that is masked, and the padding of the vocabulary."""
    config = twin("configs/emu3_8b_stage1.py", remat="none", dropout=0.0)
    config.loss.chunk_tokens = 32  # divides the positions, so that none are padding
    with config.unlocked():
        config.model.attention = "reference"  # others compute scores again
    task = program_of(config).task
    params = nn.unbox(jax.eval_shape(task.init, KEY))["params"]
    one = sharding.make_mesh(sharding.MeshConfig(fsdp=1), jax.devices()[:1])
    batch = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in task.abstract_batch(one).items()}
    gradients = jax.grad(lambda p, b: task.loss(p, {}, b, KEY, 0).total)
    counted = model_flops.of_call(gradients, params, batch) / task.units_per_batch()
    c = task.config.model
    masked = task.config.data.sequence_length * c.num_heads * c.head_dim * c.num_layers
    padding = c.hidden_size * (c.padded_vocab_size - c.vocab_size)
    assert counted == task.flops_per_unit() + 6 * (masked + padding)


def _small(**loss):
    config = load_config("configs/vision_tokenizer_nano.py")
    with config.unlocked():
        config.model.update(ch=8, ch_mult=(1, 2), attn_resolutions=())
        config.loss.update(loss)
    return config


def test_a_frozen_encoder_has_no_backward_pass_and_a_discriminator_costs():
    whole = program_of(_small()).model_flops()
    decoder = program_of(_small(decoder_only=True)).model_flops()
    discriminator = dict(adversarial=dict(weight=0.1), discriminator=dict(width=8, norm_groups=8))
    encoding = program_of(_small(), "tokenize").model_flops()
    assert 0 < 2 * encoding < decoder < whole < program_of(_small(**discriminator)).model_flops()
