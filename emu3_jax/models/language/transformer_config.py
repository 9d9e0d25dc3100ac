"""Sizes and choices of the transformer, checked one by one and against each other."""

import dataclasses

import jax

from emu3_jax.models.language.attention_kernels import choice
from emu3_jax.models.language.layers import padded_rows

_POLICIES = jax.checkpoint_policies

REMAT = {
    "none": None,
    "full": _POLICIES.nothing_saveable,
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "attention": _POLICIES.save_only_these_names("query", "key", "value", "attention"),
}
"""What is stored for the backward pass, per token and layer, and what is computed again.

With D hidden, N/K heads/key heads of H, F intermediate:

none       stores everything but SiLU's result, with the reference attention also float32 scores
           and probabilities (2 N S): the fastest, the most memory.
full       stores the D numbers of the layer's input; repeats the whole forward pass: +1/3 FLOPs.
dots       stores the results of weight matmuls, 2 (N + K) H + 2 F + 2 D; repeats norms,
           activations and attention: a few per cent more FLOPs for short rows, more for large S.
attention  stores queries, keys, values and the attention's output, 2 (N + K) H + D, and N sums;
           repeats the MLP, but neither the projections nor attention: for long rows, with an
           attention that stores no scores.
"""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a Transformer.

    Attributes:
      vocab_size: true number of token ids.
      hidden_size: numbers per token between the layers.
      intermediate_size: numbers per token within the MLP.
      num_layers: number of layers.
      num_heads: number of query heads.
      num_kv_heads: number of key and value heads; each serves num_heads / num_kv_heads query heads.
      head_dim: numbers per head, even.
      rope_theta: base of the rotary positions' wavelengths (released config.json).
      norm_eps: added to the mean square in RMSNorm (released config.json).
      dropout: rate at four sites: embedding, attention probabilities, attention output, MLP
        output (0.1 in the released config.json and in the paper's pretraining).
      vocab_multiple: the rows of both vocabulary matrices are vocab_size rounded up to a multiple
        of this, so that they can be sharded (184,622 is 2 x 92,311). The rows above vocab_size
        are initialised like the rest, never looked up, and never get probability.
      dtype: type of activations and matmuls; norms, scores, softmax and logits are float32.
      param_dtype: type the weights are stored in.
      remat: what the backward pass computes again: "none", nothing; "full", each layer from its
        input; "dots", all but matmuls; "attention", all but the projections and attention. See
        REMAT.
      attention: "reference", "blockwise", "triangle" (for CPUs), "splash" (TPU), "cudnn" (GPU), or
        "auto": the fastest that supports this config on the machine.
      attention_dropout: rate on attention probabilities alone; None: `dropout`. The kernels for
        accelerators (splash, cudnn) need 0.
      scan_layers: True: one body, weights stacked [num_layers, ...]; False: layers_0, layers_1…

    Raises:
      ValueError: an invalid size or name; the message has `model.<field>`.
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
