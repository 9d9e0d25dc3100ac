"""The decoder-only transformer over one stream of text, image and video tokens.

Exactly the released architecture: pre-norm blocks of grouped-query attention with rotary positions
and a gated MLP, untied embeddings, no biases. All layers share one traced body (`nn.scan`), so that
compile time does not grow with depth.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models.language import rope, zigzag
from emu3_jax.models.language.attention import Attention, Context
from emu3_jax.models.language.attention_kernels import choice
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.layers import Dropout, Embedding, Linear, RMSNorm
from emu3_jax.models.language.transformer_config import REMAT, TransformerConfig
from emu3_jax.sharding import check_divides, constrain


def released(**changes) -> TransformerConfig:
    """Emu3-8B (released config.json; paper table 3)."""
    sizes = {
        "vocab_size": 184622,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
    }
    return TransformerConfig(**(sizes | changes))


def count_parameters(config: TransformerConfig) -> int:
    """Number of weights, without vocabulary padding (8,492,011,520 for the released sizes)."""
    c = config
    attention = 2 * c.hidden_size * (c.num_heads + c.num_kv_heads) * c.head_dim
    mlp = 3 * c.hidden_size * c.intermediate_size
    layer = attention + mlp + 2 * c.hidden_size
    return 2 * c.vocab_size * c.hidden_size + c.num_layers * layer + c.hidden_size


def check_mesh(config: TransformerConfig, mesh) -> None:
    """ValueError naming the size and the mesh axis if this model cannot be sharded over `mesh`."""
    check_divides(mesh, "heads", "model.num_heads", config.num_heads)
    check_divides(mesh, "kv_heads", "model.num_kv_heads", config.num_kv_heads)
    check_divides(mesh, "mlp", "model.intermediate_size", config.intermediate_size)
    check_divides(mesh, "embed", "model.hidden_size", config.hidden_size)
    check_divides(mesh, "vocab", "padded model.vocab_size", config.padded_vocab_size)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(gate_BSF, up_BSF):
    """SiLU(gate) x up. The backward pass computes SiLU again: it is cheaper than to store it."""
    return nn.silu(gate_BSF) * up_BSF


class Block(nn.Module):
    """One layer: attention and gated MLP, each after a norm and added to its input."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BSD, cache, context: Context, deterministic: bool):
        """x_BSD -> (x_BSD, new keys and values or None); see Attention for the arguments."""
        c = self.config
        D, F = c.hidden_size, c.intermediate_size
        norm = functools.partial(RMSNorm, eps=c.norm_eps, param_dtype=c.param_dtype)
        linear = functools.partial(Linear, dtype=c.dtype, param_dtype=c.param_dtype)
        attention = Attention(c, name="attention")
        gate = linear(shape=(D, F), logical=("embed", "mlp"), name="gate")
        up = linear(shape=(D, F), logical=("embed", "mlp"), name="up")
        down = linear(shape=(F, D), logical=("mlp", "embed"), name="down")

        def dropout(h_BSD):
            return Dropout(c.dropout)(h_BSD, deterministic, context.row_positions_S)

        h_BSD = norm(name="attention_norm")(x_BSD)
        h_BSD, new = attention(h_BSD, cache, context, deterministic)
        x_BSD = constrain(x_BSD + dropout(h_BSD), "batch", "sequence", "embed")

        h_BSD = norm(name="mlp_norm")(x_BSD)
        h_BSF = _gated(gate(h_BSD), up(h_BSD))
        h_BSF = constrain(h_BSF, "batch", "sequence", "mlp")
        x_BSD = constrain(x_BSD + dropout(down(h_BSF)), "batch", "sequence", "embed")
        return x_BSD, new


def _scanned(block, num_layers: int):
    """`block` over layers: each has its own weights, dropout, and index of its cache."""
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class Transformer(nn.Module):
    """Tokens to next-token logits."""

    config: TransformerConfig

    def setup(self):
        """Submodules; the names are the keys of the params tree."""
        c = self.config
        dtypes = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        self.embed = Embedding(c.padded_vocab_size, c.hidden_size, **dtypes)
        self.embed_dropout = Dropout(c.dropout)
        block = Block
        if c.remat != "none":
            # In a scan the loop itself separates the two forward passes.
            block = nn.remat(
                Block, policy=REMAT[c.remat], prevent_cse=not c.scan_layers, static_argnums=(4,)
            )
        if c.scan_layers:
            self.layers = _scanned(block, c.num_layers)(c)
        else:
            self.layers = [block(c) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps, c.param_dtype)
        shape = (c.hidden_size, c.padded_vocab_size)
        self.lm_head = Linear(shape, ("embed", "vocab"), **dtypes, out_dtype="float32")

    def __call__(self, tokens, positions=None, segment_ids=None, deterministic=True):
        """Logits of the next token at every position.

        Args:
            tokens: int [B, S], ids below vocab_size.
            positions: int [B, S]; default: the position in the row, restarting in each segment.
            segment_ids: int [B, S], documents that share a row; 0 is padding. Default: one.
            deterministic: True: no dropout; False needs the rng "dropout".

        Returns:
            float32 [B, S, vocab_size].
        """
        return self.logits(self.hidden(tokens, positions, segment_ids, deterministic))

    def hidden(self, tokens, positions=None, segment_ids=None, deterministic=True):
        """As `__call__` up to the final norm: [B, S, D] in the compute type.

        The product with params["lm_head"]["kernel"] ([D, padded vocabulary]) gives the logits; a
        loss over chunks of them never holds them all.
        """
        if positions is None and segment_ids is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        elif positions is None:
            positions = rope.positions_in_segments(segment_ids)
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        devices = 1
        if not self.is_initializing():
            rate = 0.0 if deterministic else self.config.probability_dropout
            arguments = (self.config.attention, tokens.shape[1], rate, self.config.dtype)
            devices = choice.zigzag_devices(*arguments)
        if devices > 1:
            inputs = (tokens, positions, segment_ids)
            tokens, positions, segment_ids = map(zigzag.enter, inputs)
        row_positions_S = jnp.asarray(zigzag.row_positions(tokens.shape[1], devices))
        context = Context(*self._rotation(positions), segment_ids, row_positions_S)
        x_BSD = self._embed(tokens, deterministic, row_positions_S)
        x_BSD, _ = self._layers(x_BSD, None, context, deterministic)
        x_BSD = self.final_norm(x_BSD)
        return zigzag.leave(x_BSD) if devices > 1 else x_BSD

    def read(self, tokens_RS, positions_RS, cache: KVCache, written_RC):
        """Reads tokens after those in the cache: a piece of a prompt, or what a decoder drew.

        A token attends to the slots of its row that are named and lie before its position, and to
        those of the new tokens that do not lie behind it.

        Args:
            tokens_RS: int [R, S].
            positions_RS: int [R, S], in the row's own order; -1 marks padding, which nothing
                attends to.
            cache: the KVCache. It is not written: see `KVCache.write`.
            written_RC: bool [R, C], which of the first C slots hold tokens. No other is read.

        Returns:
            [R, S, D] after the final norm (`logits` goes on from there), and a KVCache of the S
            tokens.
        """
        slots = written_RC.shape[1]
        if slots > cache.slots:
            raise ValueError(f"{slots} slots of a cache of {cache.slots} cannot be read")
        before_RSC = jnp.arange(slots) < positions_RS[:, :, None]
        not_after_RST = positions_RS[:, None, :] <= positions_RS[:, :, None]
        context = Context(
            *self._rotation(positions_RS),
            old_mask=written_RC[:, None, :] & before_RSC,
            new_mask=not_after_RST & (positions_RS >= 0)[:, None, :],
        )
        x_RSD, new = self._layers(self._embed(tokens_RS, True), cache, context, True)
        return self.final_norm(x_RSD), new

    def _rotation(self, positions):
        c = self.config
        return rope.rotation(positions, c.head_dim, c.rope_theta, jnp.dtype(c.dtype))

    def _embed(self, tokens, deterministic, row_positions_S=None):
        x_BSD = self.embed_dropout(self.embed(tokens), deterministic, row_positions_S)
        return constrain(x_BSD, "batch", "sequence", "embed")

    def _layers(self, x_BSD, cache, context, deterministic):
        """All layers; cache is None or a KVCache of all layers, the result likewise (new slots)."""
        if self.config.scan_layers:
            index = None if cache is None else jnp.arange(self.config.num_layers)
            context = context._replace(stack=cache)
            return self.layers(x_BSD, index, context, deterministic)
        news = []
        for i, layer in enumerate(self.layers):
            of_layer = None if cache is None else KVCache(*(x and x[i] for x in cache))
            x_BSD, new = layer(x_BSD, of_layer, context, deterministic)
            news.append(new)
        return x_BSD, jax.tree.map(lambda *of_layers: of_layers, *news)

    def logits(self, x_BSD):
        """Float32 logits [B, S, vocab_size] of [B, S, D] from `hidden` or `read`."""
        logits_BSV = constrain(self.lm_head(x_BSD), "batch", "sequence", "vocab")
        return logits_BSV[..., : self.config.vocab_size]


def stack_layers(params: dict) -> dict:
    """Weights layers_0, layers_1, … -> layers with a leading axis (scan_layers=True)."""
    names = [name for name in params if name.startswith("layers_")]
    names.sort(key=lambda name: int(name.removeprefix("layers_")))
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"layers": jax.tree.map(lambda *a: jnp.stack(a), *[params[n] for n in names])}


def unstack_layers(params: dict) -> dict:
    """Weights with a leading layer axis -> layers_0, layers_1, … (scan_layers=False)."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    for i in range(count):
        rest[f"layers_{i}"] = jax.tree.map(lambda a, i=i: a[i], params["layers"])
    return rest


def unscanned(model: Transformer, params: dict) -> tuple[Transformer, dict]:
    """The same model with a list of layers (scan_layers=False), and its weights, copied to it."""
    if not model.config.scan_layers:
        return model, params
    config = dataclasses.replace(model.config, scan_layers=False)
    return type(model)(config), unstack_layers(params)
