"""What decoders share: a forward pass over the cache, the law of each token, and its draw.

The order is the official one: guidance, constraint mask, temperature, top-k, top-p, draw.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.generate.decoding import constraints, guidance, laws
from emu3_jax.generate.decoding.laws import Filters
from emu3_jax.generate.decoding.rows import Rows, State
from emu3_jax.models.language import int8
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.layers import product
from emu3_jax.models.language.transformer import Transformer
from emu3_jax.sharding import constrain
from emu3_jax.vocab import Vocab


class Numbers(NamedTuple):
    """The numbers of each request's `Sampling`, which can change without a new compilation."""

    seed_B: jax.Array
    temperature_B: jax.Array
    top_p_B: jax.Array
    guidance_B: jax.Array


class Scores(NamedTuple):
    """Scores of the next token after guidance and constraints, float32.

    Attributes:
      visual_BSV: of the visual tokens; index k is code k. None if no row needs them.
      text_B1V: of texts (`constraints.text_scores`) at the first of the S tokens, where a decoder
        puts those of texts. None likewise.
    """

    visual_BSV: jax.Array | None
    text_B1V: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Kind:
    """What decides which program is compiled, beside the decoder.

    Attributes:
      guided: whether rows are pairs.
      visual, text: whether any row needs scores of visual tokens, or of texts.
      whole_vocabulary: as in `Sampling`.
      filters: of the law.
    """

    guided: bool
    visual: bool
    text: bool
    whole_vocabulary: bool
    filters: Filters


class Reader:
    """A model with its weights, and how tokens are drawn. Made anew inside each jitted function."""

    def __init__(
        self, model: Transformer, params, vocab: Vocab, kind: Kind, numbers: Numbers, live: int
    ):
        """`live` slots of the cache are read in each forward pass."""
        self.model, self.params, self.vocab = model, params, vocab
        self.kind, self.numbers, self.live = kind, numbers, live
        # Of the columns of the head, those of codes are a sixth in the released vocabulary. They
        # are cut out once, before the loop, and sharded anew.
        if kind.visual:
            head_DV = params["lm_head"]["kernel"][:, vocab.visual_start : vocab.visual_end]
            self._visual_DV = constrain(head_DV, "embed", "vocab")

    def read(
        self,
        state: State,
        tokens_RS: jax.Array,
        offsets_BS: jax.Array,
        written_RC: jax.Array | None = None,
    ) -> tuple[Scores, KVCache]:
        """Reads S tokens of each row in one forward pass.

        Args:
          state: what has been read before.
          tokens_RS: int32, each row's tokens.
          offsets_BS: int32, the offset of the token that follows each; -1: nothing is read there.
            Without `written_RC` a row's are consecutive.
          written_RC: bool [R, live], the slots that are attended to; None: those of all tokens that
            are committed.

        Returns:
          The scores of the next tokens, and the cache with the S tokens of rows that are not
          finished.
        """
        rows = state.rows
        is_read_BS = (offsets_BS >= 0) & ~rows.finished_B[:, None]
        first_R1 = rows.first_positions()[:, None]
        positions_RS = jnp.where(
            rows.per_branch(is_read_BS), first_R1 + rows.per_branch(offsets_BS), -1
        )
        in_order = written_RC is None
        if in_order:
            written_RC = jnp.arange(self.live) < first_R1 + rows.per_branch(rows.step_B)[:, None]
        with int8.reading():
            x_RSD, new = self.model.apply(
                {"params": self.params},
                tokens_RS,
                positions_RS,
                state.cache,
                written_RC,
                method="read",
            )
        write = state.cache.write_run if in_order else state.cache.write_each
        cache = write(new, positions_RS)
        return self._scores(x_RSD, rows, offsets_BS), cache

    def _scores(self, x_RSD: jax.Array, rows: Rows, offsets_BS: jax.Array) -> Scores:
        visual_BSV = text_B1V = None
        if self.kind.visual:
            visual_RSV = product(x_RSD, self._visual_DV, 1, x_RSD.dtype, jnp.float32)
            visual_RSV = constrain(visual_RSV, "batch", None, "vocab")
            visual_BSV = self._guided(visual_RSV, rows)
        if self.kind.text:
            logits_R1V = self.model.apply({"params": self.params}, x_RSD[:, :1], method="logits")
            mask_B1 = rows.mask_at(offsets_BS[:, :1])
            scores_B1V, whole = self._guided(logits_R1V, rows), self.kind.whole_vocabulary
            choices_B1A = rows.choices_BA[:, None]
            text_B1V = constraints.text_scores(scores_B1V, mask_B1, choices_B1A, self.vocab, whole)
        return Scores(visual_BSV, text_B1V)

    def _guided(self, logits_RSV: jax.Array, rows: Rows) -> jax.Array:
        if not self.kind.guided:
            return logits_RSV
        return guidance.guide_pairs(logits_RSV, rows.guided_B, self.numbers.guidance_B)

    def law(self, scores_BSV: jax.Array) -> jax.Array:
        """The law of each token, float32 [B, S, V]."""
        numbers = (self.numbers.temperature_B, self.numbers.top_p_B)
        return laws.law(scores_BSV, *(x_B[:, None, None] for x_B in numbers), self.kind.filters)

    def uniforms(self, count: int, rows: Rows, offsets_BS: jax.Array, *more_BS) -> jax.Array:
        """Random numbers of the tokens at some offsets, [B, S, count]; see `laws.uniforms`."""
        seed_BS, number_BS = (
            jnp.broadcast_to(x_B[:, None], offsets_BS.shape)
            for x_B in (self.numbers.seed_B, rows.number_B)
        )
        return laws.uniforms(seed_BS, count, number_BS, offsets_BS, *more_BS)

    def draw(self, scores: Scores, rows: Rows, offsets_BS: jax.Array) -> jax.Array:
        """The next tokens, int32 [B, S], each drawn from its own law or forced.

        The draws depend on the seed, the number of the request and the offset.
        """
        mask_BS = rows.mask_at(offsets_BS)
        uniforms_BS2 = self.uniforms(2, rows, offsets_BS)
        code_BS = text_BS = None
        if scores.visual_BSV is not None:
            code_BS = self._draw(scores.visual_BSV, uniforms_BS2)
        if scores.text_B1V is not None:
            text_B1 = self._draw(scores.text_B1V, uniforms_BS2[:, :1])
            text_BS = constraints.text_tokens(text_B1, self.vocab, self.kind.whole_vocabulary)
        return constraints.choose(mask_BS, code_BS, text_BS, self.vocab)

    def _draw(self, scores_BSV: jax.Array, uniforms_BS2: jax.Array) -> jax.Array:
        if self.kind.filters.greedy:
            return scores_BSV.argmax(axis=-1).astype(jnp.int32)
        return laws.draw(self.law(scores_BSV), uniforms_BS2)
