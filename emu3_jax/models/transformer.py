"""The decoder-only transformer over one stream of text, image and video tokens.

The released architecture exactly: pre-norm blocks of grouped-query attention with rotary
positions and a gated MLP, untied embeddings, no biases. All layers share one traced body
(`nn.scan`), so that compile time does not grow with depth.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models import rope, zigzag
from emu3_jax.models.attention import Attention, Context, KVCache
from emu3_jax.models.attention_kernels import choice
from emu3_jax.models.layers import Dropout, Embedding, Linear, RMSNorm, padded_rows
from emu3_jax.sharding import check_divides, constrain

_POLICIES = jax.checkpoint_policies

REMAT = {
    "none": None,
    "full": _POLICIES.nothing_saveable,
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "attention": _POLICIES.save_only_these_names("query", "key", "value", "attention"),
}
"""What the backward pass finds stored, per token and layer, and what it computes again.

With D hidden, N/K heads/key heads of H, F intermediate:

none       everything, also float32 scores and probabilities (2 N S): the fastest, the most memory.
full       the D numbers of the layer's input; the whole forward pass again: +1/3 FLOPs.
dots       the results of weight matmuls, 2 (N + K) H + 2 F + 2 D; norms, activations and
           attention again: a few per cent more FLOPs at short rows, more where S is large.
attention  queries, keys, values and the attention's output, 2 (N + K) H + D, and N sums; the MLP
           again, but neither the projections nor attention: for long rows, with an attention
           that stores no scores.
"""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a Transformer.

    Attributes:
        vocab_size: true number of token ids.
        dropout: rate at four sites: embedding, attention probabilities, attention output, MLP
            output (0.1 in the released config.json and in the paper's pretraining).
        rope_theta, norm_eps: released config.json.
        vocab_multiple: both vocabulary matrices have vocab_size rounded up to this many rows, so
            that they can be cut (184,622 is 2 x 92,311). The rows above vocab_size start as
            random as the rest, are never looked up, and never get probability.
        dtype: type of activations and matmuls; norms, scores, softmax and logits are float32.
        param_dtype: type the weights are stored in.
        remat: a name in REMAT.
        attention: a name in attention_kernels.choice.IMPLEMENTATIONS, or "auto": the fastest that
            does what is asked on the machine at hand.
        attention_dropout: rate on attention probabilities alone; None: `dropout`. The kernels for
            accelerators (splash, cudnn) have none: they need 0.
        scan_layers: True: one body, weights stacked [num_layers, ...]; False: layers_0, layers_1…

    Raises:
        ValueError: a size or name that cannot be, named as `model.<field>`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    dropout: float = 0.1
    vocab_multiple: int = 256
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    attention_dropout: float | None = None
    scan_layers: bool = True

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"model.{field.name}={value} must be positive")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} must be a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: rotation takes pairs")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= (getattr(self, name) or 0.0) < 1.0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be in [0, 1)")
        dtypes = ("float32", "bfloat16", "float16")
        for name, known in (
            ("remat", REMAT),
            ("attention", ("auto", *choice.IMPLEMENTATIONS)),
            ("dtype", dtypes),
            ("param_dtype", dtypes),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} is not one of {', '.join(known)}"
                )
        choice.check(self.attention, self.probability_dropout, self.dtype)

    @property
    def probability_dropout(self) -> float:
        """Rate of dropout on attention probabilities."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the vocabulary matrices."""
        return padded_rows(self.vocab_size, self.vocab_multiple)


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
    """Number of weights, vocabulary padding left out (8,492,011,520 for the released sizes)."""
    c = config
    attention = 2 * c.hidden_size * (c.num_heads + c.num_kv_heads) * c.head_dim
    mlp = 3 * c.hidden_size * c.intermediate_size
    layer = attention + mlp + 2 * c.hidden_size
    return 2 * c.vocab_size * c.hidden_size + c.num_layers * layer + c.hidden_size


def check_mesh(config: TransformerConfig, mesh) -> None:
    """ValueError naming the size and the mesh axis if this model cannot be laid out on `mesh`."""
    check_divides(mesh, "heads", "model.num_heads", config.num_heads)
    check_divides(mesh, "kv_heads", "model.num_kv_heads", config.num_kv_heads)
    check_divides(mesh, "mlp", "model.intermediate_size", config.intermediate_size)
    check_divides(mesh, "embed", "model.hidden_size", config.hidden_size)
    check_divides(mesh, "vocab", "padded model.vocab_size", config.padded_vocab_size)


class Block(nn.Module):
    """One layer: attention and gated MLP, each behind a norm and added to its input."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BSD, cache, context: Context, deterministic: bool):
        """x_BSD -> (x_BSD, new keys and values or None); see Attention for the arguments."""
        c = self.config
        dtypes = (jnp.dtype(c.dtype), jnp.dtype(c.param_dtype))
        attention = Attention(
            c.hidden_size,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            c.attention,
            c.probability_dropout,
            *dtypes,
            name="attention",
        )
        h_BSD = RMSNorm(c.norm_eps, dtypes[1], name="attention_norm")(x_BSD)
        h_BSD, new = attention(h_BSD, cache, context, deterministic)
        x_BSD = x_BSD + Dropout(c.dropout)(h_BSD, deterministic, context.places_S)
        x_BSD = constrain(x_BSD, "batch", "sequence", "embed")

        h_BSD = RMSNorm(c.norm_eps, dtypes[1], name="mlp_norm")(x_BSD)
        wide = ((c.hidden_size, c.intermediate_size), ("embed", "mlp"), 1, *dtypes)
        narrow = ((c.intermediate_size, c.hidden_size), ("mlp", "embed"), 1, *dtypes)
        h_BSF = nn.silu(Linear(*wide, name="gate")(h_BSD)) * Linear(*wide, name="up")(h_BSD)
        h_BSF = constrain(h_BSF, "batch", "sequence", "mlp")
        h_BSD = Linear(*narrow, name="down")(h_BSF)
        x_BSD = x_BSD + Dropout(c.dropout)(h_BSD, deterministic, context.places_S)
        return constrain(x_BSD, "batch", "sequence", "embed"), new


def _scanned(block, num_layers: int):
    """`block` over layers: own weights and dropout for each, cache in and out along axis 0."""
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
        dtypes = (jnp.dtype(c.dtype), jnp.dtype(c.param_dtype))
        self.embed = Embedding(c.padded_vocab_size, c.hidden_size, *dtypes)
        self.embed_dropout = Dropout(c.dropout)
        block = Block
        if c.remat != "none":
            # In a scan the loop itself keeps the two forward passes apart.
            block = nn.remat(
                Block, policy=REMAT[c.remat], prevent_cse=not c.scan_layers, static_argnums=(4,)
            )
        if c.scan_layers:
            self.layers = _scanned(block, c.num_layers)(c)
        else:
            self.layers = [block(c) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c.norm_eps, dtypes[1])
        shape = (c.hidden_size, c.padded_vocab_size)
        self.lm_head = Linear(shape, ("embed", "vocab"), 1, *dtypes, out_dtype=jnp.float32)

    def __call__(self, tokens, positions=None, segment_ids=None, deterministic=True):
        """Logits of the next token at every place.

        Args:
            tokens: int [B, S], ids below vocab_size.
            positions: int [B, S]; default: the place in the row, restarting in each segment.
            segment_ids: int [B, S], documents that share a row; 0 is padding. Default: one.
            deterministic: True: no dropout; False needs the rng "dropout".

        Returns:
            float32 [B, S, vocab_size].
        """
        return self._logits(self.hidden(tokens, positions, segment_ids, deterministic))

    def hidden(self, tokens, positions=None, segment_ids=None, deterministic=True):
        """As `__call__` up to the final norm: [B, S, D] in the compute type.

        Times params["lm_head"]["kernel"] ([D, padded vocabulary]) this gives the logits; a loss
        over chunks of them never holds all.
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
            asked = (self.config.attention, tokens.shape[1], rate, self.config.dtype)
            devices = choice.zigzag_devices(*asked)
        if devices > 1:
            inputs = (tokens, positions, segment_ids)
            tokens, positions, segment_ids = map(zigzag.enter, inputs)
        places_S = jnp.asarray(zigzag.places(tokens.shape[1], devices))
        context = Context(*self._rotation(positions), segment_ids, places_S)
        x_BSD = self._embed(tokens, deterministic, places_S)
        x_BSD, _ = self._layers(x_BSD, None, context, deterministic)
        x_BSD = self.final_norm(x_BSD)
        return zigzag.leave(x_BSD) if devices > 1 else x_BSD

    def decode(self, tokens, positions, cache: KVCache, last_only: bool = False):
        """Read tokens behind what the cache holds: a whole prompt, or one token a step.

        Args:
            tokens: int [B, S]; rows of a batch of prompts are padded on the left.
            positions: int [B, S], cumsum(real) - 1 of the whole row; padding before the prompt
                has -1 and is never seen.
            cache: with at least S slots left from `index` on (not checked: index is traced).
            last_only: logits of the last place alone, [B, 1, vocab_size].

        Returns:
            float32 logits [B, S, vocab_size] and the cache with S more slots written.
        """
        length, slots = tokens.shape[1], cache.valid.shape[1]
        if length > slots:
            raise ValueError(f"{length} tokens do not fit a cache of {slots} slots")
        real_BS = positions >= 0
        causal_ST = jnp.tril(jnp.ones((length, length), bool))
        context = Context(
            *self._rotation(positions),
            old_mask=real_BS[:, :, None]
            & (cache.valid & (jnp.arange(slots) < cache.index))[:, None, :],
            new_mask=real_BS[:, :, None] & real_BS[:, None, :] & causal_ST,
        )
        x_BSD = self._embed(tokens, True)
        x_BSD, (k_new, v_new) = self._layers(x_BSD, (cache.k, cache.v), context, True)
        x_BSD = self.final_norm(x_BSD[:, -1:] if last_only else x_BSD)
        start = (0, 0, cache.index, 0, 0)
        cache = KVCache(
            k=constrain(jax.lax.dynamic_update_slice(cache.k, k_new, start), *KVCache.LOGICAL),
            v=constrain(jax.lax.dynamic_update_slice(cache.v, v_new, start), *KVCache.LOGICAL),
            valid=jax.lax.dynamic_update_slice(cache.valid, real_BS, (0, cache.index)),
            index=cache.index + length,
        )
        return self._logits(x_BSD), cache

    def _rotation(self, positions):
        c = self.config
        return rope.rotation(positions, c.head_dim, c.rope_theta, jnp.dtype(c.dtype))

    def _embed(self, tokens, deterministic, places_S=None):
        x_BSD = self.embed_dropout(self.embed(tokens), deterministic, places_S)
        return constrain(x_BSD, "batch", "sequence", "embed")

    def _layers(self, x_BSD, cache, context, deterministic):
        """All layers; cache is None or (k, v) [L, B, C, K, H], the result likewise (new slots)."""
        if self.config.scan_layers:
            return self.layers(x_BSD, cache, context, deterministic)
        news = []
        for i, layer in enumerate(self.layers):
            layer_cache = jax.tree.map(lambda a, i=i: a[i], cache)
            x_BSD, new = layer(x_BSD, layer_cache, context, deterministic)
            news.append(new)
        return x_BSD, jax.tree.map(lambda *a: jnp.stack(a), *news)

    def _logits(self, x_BSD):
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
