"""Ahead-of-time lowering of the decoding loop; needs neither weights nor prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.generate.decoding import constraints, device, scheduling
from emu3_jax.generate.decoding.decoders.decoder import Decoder
from emu3_jax.generate.decoding.laws import Filters
from emu3_jax.generate.decoding.reader import Kind, Numbers
from emu3_jax.generate.decoding.rows import Rows
from emu3_jax.models.language import int8
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig, check_mesh
from emu3_jax.vocab import Vocab

TOP_K = 2048  # image_generation.py of the released code


def lower(
    config: TransformerConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    decoder: Decoder,
    *,
    requests: int,
    prompt: int,
    mask: np.ndarray,
    live: int | None = None,
    guided: bool = True,
    quantized: tuple[str, ...] = (),
) -> jax.stages.Lowered:
    """The loop that `engine.generate` runs for a batch of images or clips.

    Args:
      config: of the model; weights are in its compute type.
      vocab: the token space.
      mesh: as in `engine.generate`.
      decoder: how tokens are decoded.
      requests: number in the batch; the mesh axes of "batch" must divide it.
      prompt: tokens of the longest prompt.
      mask: int32 [N], the constraint mask of each answer.
      live: slots of the cache that a pass reads; None: all that are allocated.
      guided: with classifier-free guidance: two rows per request.
      quantized: what is int8: "weights", "cache".

    Raises:
      ValueError: the model or the batch does not fit the mesh.
    """
    check_mesh(config, mesh)
    sharding.check_divides(mesh, "batch", "requests", requests)
    model, decoder = Transformer(config), decoder.fitted([mask])
    rows = requests * (2 if guided else 1)
    slots = slots_of(decoder, prompt, mask)
    kind = Kind(guided, constraints.VISUAL in mask, False, False, Filters(False, TOP_K, False))
    layouts = _Layouts(mesh)
    numbers = Numbers(*(layouts.rows(requests, dtype=x) for x in (jnp.uint32, *[jnp.float32] * 3)))
    with jax.set_mesh(mesh):
        return device.advance.lower(
            abstract_params(model, mesh, "weights" in quantized),
            abstract_cache(config, mesh, rows, slots, "cache" in quantized),
            None,
            _rows(layouts, decoder, mask, requests, rows),
            layouts.rows(requests, dtype=bool),
            numbers,
            layouts.array((), jnp.int32),
            layouts.array((), jnp.int32),
            model=model,
            vocab=vocab,
            decoder=decoder,
            kind=kind,
            live=slots if live is None else live,
        )


def slots_of(decoder: Decoder, prompt: int, mask: np.ndarray) -> int:
    """Slots that a batch of such requests allocates, as `Session` does."""
    slots = scheduling.bucket_quarter(prompt + len(mask) - 1, 64)
    return scheduling.allocated(slots, prompt, decoder.fitted([mask]).width)


@dataclasses.dataclass(frozen=True)
class _Layouts:
    """Shapes that are sharded over a mesh."""

    mesh: jax.sharding.Mesh

    def array(self, shape, dtype, *logical) -> jax.ShapeDtypeStruct:
        layout = jax.NamedSharding(self.mesh, sharding.partition_spec(*logical))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    def rows(self, *shape, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        return self.array(shape, dtype, "batch")


def _rows(layouts: _Layouts, decoder: Decoder, mask: np.ndarray, requests: int, rows: int) -> Rows:
    """The shapes of `Rows`."""
    of, columns = layouts.rows, len(mask)
    schedule = jax.tree.map(lambda x: of(requests, *x.shape), decoder.schedule(mask, columns))
    return Rows(
        prompt_R=of(rows),
        mask_BN=of(requests, columns),
        choices_BA=of(requests, 0),
        length_B=of(requests),
        guided_B=of(requests, dtype=bool),
        number_B=of(requests),
        last_R=of(rows),
        step_B=of(requests),
        new_BN=of(requests, columns),
        finished_B=of(requests, dtype=bool),
        forwards_B=of(requests),
        commits_BW=of(requests, decoder.width),
        schedule=schedule,
    )


def abstract_cache(config, mesh, rows: int, slots: int, quantized: bool) -> KVCache:
    """The cache's shapes, sharded over the mesh."""
    cache = jax.eval_shape(lambda: KVCache.zeros(config, rows, slots, quantized))

    def layout(x):
        names = ("layers", "batch", "kv_heads", None, "head_dim")
        names = names[0 if config.scan_layers else 1 :][: x.ndim]
        return jax.NamedSharding(mesh, sharding.partition_spec(*names))

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout(x)), cache)


def abstract_params(model: Transformer, mesh: jax.sharding.Mesh, quantized: bool = False):
    """Abstract parameters, sharded over `mesh`, which must be set.

    They have the model's compute type; kernels of the layers are int8 if `quantized`.
    """
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    init = lambda: model.init(jax.random.key(0), jnp.zeros(one.shape, one.dtype))  # noqa: E731
    if not quantized:
        boxed = jax.eval_shape(init)["params"]
        return sharding.abstract_arrays(boxed, mesh, model.config.dtype)
    abstract = sharding.abstract_arrays(int8.abstract(init), mesh)

    def compute_type(path, x):
        kept = x.dtype == jnp.int8 or path[-1].key == int8.SCALE
        dtype = x.dtype if kept else jnp.dtype(model.config.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(compute_type, abstract)
