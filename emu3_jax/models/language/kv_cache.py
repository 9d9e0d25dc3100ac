"""Keys and values of the tokens that have been read: what decoding keeps between two steps.

A row's slot c holds the token at position c, so rows of a batch advance at their own pace. Which
slots count is not stored here: a decoder says so in each call, and what it does not name may hold
anything.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.models.language import int8
from emu3_jax.models.language.transformer_config import TransformerConfig
from emu3_jax.sharding import constrain, partition_spec


class KVCache(NamedTuple):
    """Keys and values of R rows with C slots, K heads of H numbers.

    Each field is one array for all layers, [L, R, K, C, …], or a tuple of one per layer,
    [R, K, C, …], if the layers of the model are not scanned.

    Attributes:
      k: [.., R, K, C, H], keys after rotation.
      v: [.., R, K, C, H].
      k_scale, v_scale: float32 [.., R, K, C], if keys and values are int8; else None.
    """

    k: jax.Array | tuple[jax.Array, ...]
    v: jax.Array | tuple[jax.Array, ...]
    k_scale: jax.Array | tuple[jax.Array, ...] | None = None
    v_scale: jax.Array | tuple[jax.Array, ...] | None = None

    @classmethod
    def zeros(
        cls, config: TransformerConfig, rows: int, slots: int, quantized: bool = False
    ) -> "KVCache":
        """An empty cache on the mesh that is set, with rows over `batch`, heads over `tensor`.

        Numbers have the type of the activations, or int8 if `quantized`.
        """
        layers = (config.num_layers,) if config.scan_layers else ()
        shape = (*layers, rows, config.num_kv_heads, slots, config.head_dim)
        logical = ("layers",) * len(layers) + ("batch", "kv_heads", None, "head_dim")

        def each(shape, dtype):
            if config.scan_layers:
                return constrain(jnp.zeros(shape, dtype), *logical[: len(shape)])
            made = (jnp.zeros(shape, dtype) for _ in range(config.num_layers))
            return tuple(constrain(x, *logical[: len(shape)]) for x in made)

        dtype = jnp.int8 if quantized else jnp.dtype(config.dtype)
        scales = [each(shape[:-1], jnp.float32) for _ in range(2 * quantized)]
        return cls(each(shape, dtype), each(shape, dtype), *scales)

    @property
    def slots(self) -> int:
        """Number of slots of a row."""
        return jax.tree.leaves(self.k)[0].shape[-2]

    def stored(self, k_RSKH: jax.Array, v_RSKH: jax.Array) -> "KVCache":
        """New keys and values of one layer as this cache (of that layer) stores them."""
        k, v = (jnp.swapaxes(x, 1, 2) for x in (k_RSKH, v_RSKH))
        if self.k_scale is None:
            return KVCache(k.astype(self.k.dtype), v.astype(self.v.dtype))
        (k, k_scale), (v, v_scale) = _quantized(k), _quantized(v)
        return KVCache(k, v, k_scale, v_scale)

    def live(self, slots: int) -> "KVCache":
        """The first slots of one layer. A step reads no others."""
        return jax.tree.map(lambda x: x[:, :, :slots], self)

    def layer(self, index: jax.Array) -> "LayerOfStack":
        """One layer of a cache whose layers are stacked."""
        return LayerOfStack(self, index)

    def write_run(self, new: "KVCache", positions_RS: jax.Array) -> "KVCache":
        """Writes S tokens to each row, whose positions are consecutive.

        Padding, position -1, may only stand behind a row's tokens. What is written there counts
        for nothing. The run of a row of padding goes to the last slots. So S slots must be to spare
        behind the last token of a row.
        """
        first_R = positions_RS[:, 0]
        starts_R = jnp.where(first_R < 0, self.slots - positions_RS.shape[1], first_R)
        axis = jax.tree.leaves(self.k)[0].ndim - 4  # of rows

        def own_rows(cache, new, starts_R):
            def one(r, cache):
                def write(x, new):
                    at = [0] * x.ndim
                    at[axis], at[axis + 2] = r, starts_R[r]
                    row = jax.lax.dynamic_slice_in_dim(new, r, 1, axis)
                    # Without the barrier libtpu 0.0.42 takes a loop over several tokens for a copy
                    # of the new ones, and ends with an internal error.
                    row = jax.lax.optimization_barrier(row)
                    return jax.lax.dynamic_update_slice(x, row, at)

                return jax.tree.map(write, cache, new)

            return jax.lax.fori_loop(0, starts_R.size, one, cache)

        # Each device writes its own rows, one after the other. Of a batch of updates the TPU
        # compiler makes a scatter, for which it lays the stack of layers out anew: two copies of
        # the whole cache in every step.
        if jax.sharding.get_abstract_mesh().empty:
            return own_rows(self, new, starts_R)
        logical = ("layers",) * axis + ("batch", "kv_heads", None, "head_dim")
        layout = jax.tree.map(lambda x: partition_spec(*logical[: x.ndim]), self)
        specs = (layout, layout, partition_spec("batch"))
        return jax.shard_map(own_rows, in_specs=specs, out_specs=layout)(self, new, starts_R)

    def write_each(self, new: "KVCache", positions_RS: jax.Array) -> "KVCache":
        """Writes S tokens to each row at any positions; padding goes to the last slot."""
        to_RS = jnp.where(positions_RS < 0, self.slots - 1, positions_RS)

        def one(s: jax.Array, cache: KVCache) -> KVCache:
            def token(x):  # [R, K, S, …] of one layer
                return jax.lax.dynamic_slice_in_dim(x, s, 1, axis=2)

            return cache.write_run(_over_layers(token, new), to_RS[:, s, None])

        return jax.lax.fori_loop(0, positions_RS.shape[1], one, self)

    def take(self, index_GN: jax.Array, slots: int) -> "KVCache":
        """The first slots of some rows, G N of them.

        Args:
          index_GN: int32 [G, N]; the rows are G groups, one per shard, and an index counts from the
            first row of its group. So no row crosses the mesh.
          slots: how many slots are taken.
        """

        def one_layer(x):
            taken = jax.vmap(lambda x, index: x[index])(
                _grouped(x[:, :, :slots], index_GN), index_GN
            )
            return taken.reshape(-1, *taken.shape[2:])

        return _over_layers(one_layer, self)

    def put(self, new: "KVCache", index_GN: jax.Array, starts_GN: jax.Array) -> "KVCache":
        """Writes S tokens to some rows (see `take`), from the slots `starts_GN` on."""

        def one_layer(x, new):
            def group(x, new, index_N, starts_N):
                def one(n, x):
                    at = (index_N[n], 0, starts_N[n]) + (0,) * (x.ndim - 3)
                    return jax.lax.dynamic_update_slice(x, new[n][None], at)

                return jax.lax.fori_loop(0, index_N.size, one, x)

            groups = _grouped(x, index_GN), _grouped(new, index_GN)
            return jax.vmap(group)(*groups, index_GN, starts_GN).reshape(x.shape)

        return _over_layers(one_layer, self, new)


class LayerOfStack(NamedTuple):
    """What a layer needs of a cache of all layers. Only the slots that it reads are cut out.

    Where a scan cuts out each layer itself, a step reads all slots that are allocated.

    Attributes:
      stack: the cache.
      index: int32, of the layer.
    """

    stack: KVCache
    index: jax.Array

    def live(self, slots: int) -> KVCache:
        """See `KVCache.live`."""

        def cut(x):
            sizes = (1, *x.shape[1:3], slots, *x.shape[4:])
            return jax.lax.dynamic_slice(x, (self.index,) + (0,) * (x.ndim - 1), sizes)[0]

        return jax.tree.map(cut, self.stack)

    def stored(self, k_RSKH: jax.Array, v_RSKH: jax.Array) -> KVCache:
        """See `KVCache.stored`."""
        return self.stack.stored(k_RSKH, v_RSKH)


def _grouped(x: jax.Array, index_GN: jax.Array) -> jax.Array:
    """Rows [R, …] as groups [G, R / G, …]."""
    return x.reshape(len(index_GN), -1, *x.shape[1:])


def _over_layers(one_layer: Callable, *caches: KVCache) -> KVCache:
    """Applies a function of arrays of one layer to all layers of all fields."""
    stacked = not isinstance(caches[0].k, tuple)
    return jax.tree.map(jax.vmap(one_layer) if stacked else one_layer, *caches)


def _quantized(x_RKSH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8 numbers [R, K, S, H], and a scale for each head of each token, float32 [R, K, S]."""
    steps, scale = int8.rounded(x_RKSH, axes=(-1,))
    return steps, scale[..., 0]


def cache_bytes(config: TransformerConfig, rows: int, slots: int, quantized: bool = False) -> int:
    """Bytes of a cache over all devices."""
    vectors = 2 * config.num_layers * rows * slots * config.num_kv_heads
    per_vector = (
        config.head_dim + 4 if quantized else (config.head_dim * jnp.dtype(config.dtype).itemsize)
    )
    return vectors * per_vector
