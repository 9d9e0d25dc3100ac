"""Decoding and scoring of one batch, compiled before there are weights or tokens."""

import jax
import jax.numpy as jnp

from emu3_jax import sharding
from emu3_jax.generate import engine, scoring
from emu3_jax.models.transformer import Transformer, TransformerConfig, check_mesh
from emu3_jax.vocab import Vocab


def lower_decoding(
    config: TransformerConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    *,
    requests: int,
    prompt: int,
    new: int,
    guided: bool = True,
) -> jax.stages.Lowered:
    """What `engine.generate` runs for one batch of pictures or clips, top-k 2,048 as released.

    Args:
      config: of the model; weights are in its compute type.
      vocab: the token space.
      mesh: as in `engine.generate`.
      requests: in the batch, a multiple of the mesh's rows.
      prompt: tokens of the longest prompt.
      new: tokens of the longest answer.
      guided: with classifier-free guidance: two rows a request.

    Raises:
      ValueError: the model or the batch does not fit the mesh.
    """
    check_mesh(config, mesh)
    sharding.check_divides(mesh, "batch", "requests", requests)
    model = Transformer(config)
    rows = requests * (2 if guided else 1)
    here = jax.NamedSharding(mesh, sharding.partition_spec("batch"))

    def array(*shape, dtype=jnp.int32, place=here):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def number(dtype=jnp.float32):
        return array(dtype=dtype, place=sharding.replicated(mesh))

    inputs = engine._Inputs(
        prompt_RP=array(rows, prompt),
        valid_RP=array(rows, prompt, dtype=bool),
        table_BN=array(requests, new),
        lengths_B=array(requests),
        guided_B=array(requests, dtype=bool),
        numbers_B=array(requests),
    )
    settings = engine._Settings(number(jnp.uint32), number(), number(), number())
    static = engine._Static(guided, False, 2048, False, True, False, False)
    with jax.set_mesh(mesh):
        params = _abstract_params(model, mesh)
        return engine._decode.lower(
            params, inputs, settings, model=model, vocab=vocab, static=static
        )


def lower_scoring(
    config: TransformerConfig, mesh: jax.sharding.Mesh, *, batch_size: int, row_length: int
) -> jax.stages.Lowered:
    """What `scoring.score_documents` runs for one batch of rows of `row_length` tokens.

    Args:
      config: of the model; weights are in its compute type.
      mesh: that is set where documents are scored.
      batch_size: as `scoring.score_documents` takes it.
      row_length: likewise.

    Raises:
      ValueError: the model or the rows do not fit the mesh.
    """
    check_mesh(config, mesh)
    shape = (scoring.rows_of_batch(mesh, batch_size), row_length)
    sharding.check_divides(mesh, "sequence", "row_length", row_length)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
    model = Transformer(config)
    with jax.set_mesh(mesh):
        variables = {"params": _abstract_params(model, mesh)}
        return scoring.scorer(model).lower(variables, *[rows] * len(scoring.SCORED))


def _abstract_params(model: Transformer, mesh: jax.sharding.Mesh):
    """Of the model's compute type; to be called under the mesh, on whose devices nothing exists."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), one)["params"]
    return sharding.abstract_arrays(boxed, mesh, model.config.dtype)
