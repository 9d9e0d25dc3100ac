"""Speculative Jacobi decoding with maximal coupling: fewer forward passes, the same law.

A forward pass reads a window of draft tokens behind the last committed one and gives the law p of
each. A draft x, drawn from the law q of an earlier pass, is kept with probability min(1, p(x)/q(x))
and otherwise redrawn from max(0, p - q) / sum. So x is again a draw from its law, now p, and as
often as possible the same token. All drafts before the first that was redrawn were read as they
are, so they and it are final; those behind are drafts of the next pass, with q := p.

Sources: speculative Jacobi decoding, arXiv:2410.01699; the coupling, arXiv:2510.24211 and
arXiv:2603.18599. Why the law is exact, and under which conditions:
docs/explanation/decoding.md.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.generate.decoding import laws
from emu3_jax.generate.decoding.constraints import VISUAL
from emu3_jax.generate.decoding.reader import Reader
from emu3_jax.generate.decoding.rows import Rows, State


class Drafts(NamedTuple):
    """The window of each row: the next W tokens, not yet committed.

    Attributes:
      token_BW: int32, ids.
      law_BWV: float32, the law that each visual draft was drawn from; None when decoding greedily.
    """

    token_BW: jax.Array
    law_BWV: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Jacobi:
    """See `decoder.Decoder`.

    Attributes:
      width: the window: tokens that a row reads in a forward pass. Texts are decoded one by one.
    """

    width: int = 64

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"window={self.width} of jacobi must be at least 1 token.")

    def fitted(self, masks) -> "Jacobi":
        """This decoder with a window that is not longer than the longest answer."""
        return dataclasses.replace(self, width=min(self.width, max(map(len, masks))))

    def schedule(self, mask, columns) -> tuple:
        """Nothing."""
        del mask, columns
        return ()

    def begin(self, reader: Reader, rows: Rows) -> Drafts:
        """Fresh drafts."""
        return self._fresh(reader, rows)

    def _offsets(self, rows: Rows) -> jax.Array:
        """The offsets of the window, int32 [B, W]."""
        return rows.step_B[:, None] + jnp.arange(self.width)

    def _fresh(self, reader: Reader, rows: Rows) -> Drafts:
        """A window that no pass has seen yet: codes of the frame before, or any; forced tokens.

        A code of the frame before is certain, so its law has all mass on it: a pass keeps it with
        the probability that the model gives it.
        """
        codebook_size, start = reader.vocab.codebook_size, reader.vocab.visual_start
        offsets_BW = self._offsets(rows)
        forwards_BW = jnp.broadcast_to(rows.forwards_B[:, None], offsets_BW.shape)
        uniform_BW = reader.uniforms(4, rows, offsets_BW, forwards_BW)[..., 3]
        any_BW = jnp.minimum((uniform_BW * codebook_size).astype(jnp.int32), codebook_size - 1)
        # A frame ends with EOF. An image has no frame before.
        columns = rows.mask_BN.shape[1]
        ends_BN = jnp.where(rows.mask_BN == reader.vocab.eof, jnp.arange(columns), columns)
        before_BW = offsets_BW - (ends_BN.min(axis=1, keepdims=True) + 1)
        token_BW = jnp.take_along_axis(rows.new_BN, rows.inside(before_BW), axis=1)
        is_known_BW = (before_BW >= 0) & (before_BW < rows.step_B[:, None])
        is_known_BW &= (token_BW >= start) & (token_BW < start + codebook_size)
        code_BW = jnp.where(is_known_BW, token_BW - start, any_BW)
        mask_BW = rows.mask_at(offsets_BW)
        token_BW = jnp.where(mask_BW < 0, start + code_BW, mask_BW)
        if reader.kind.filters.greedy:
            return Drafts(token_BW, None)
        certain_BWV = jax.nn.one_hot(code_BW, codebook_size)
        return Drafts(token_BW, jnp.where(is_known_BW[..., None], certain_BWV, 1 / codebook_size))

    def reach(self, rows: Rows) -> jax.Array:
        """All tokens that are committed: drafts are read anew in each pass."""
        return rows.step_B

    def step(self, reader: Reader, state: State) -> State:
        """One pass over the window of each row."""
        rows, drafts = state.rows, state.drafts
        offsets_BW = self._offsets(rows)
        mask_BW = rows.mask_at(offsets_BW)
        is_drafted_BW = (mask_BW == VISUAL) | (mask_BW >= 0)
        is_inside_BW = offsets_BW < rows.length_B[:, None]
        # A window ends where an answer does, and where a text begins: it has no drafts.
        before_BW = jnp.pad(is_drafted_BW[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        is_read_BW = is_inside_BW & (jnp.cumprod(before_BW, axis=1) > 0)
        drafts_RW = rows.per_branch(drafts.token_BW[:, :-1])
        tokens_RW = jnp.concatenate([rows.last_R[:, None], drafts_RW], axis=1)
        scores, cache = reader.read(state, tokens_RW, jnp.where(is_read_BW, offsets_BW, -1))
        is_read_BW &= is_drafted_BW

        forwards_BW = jnp.broadcast_to(rows.forwards_B[:, None], offsets_BW.shape)
        uniforms_BW4 = reader.uniforms(4, rows, offsets_BW, forwards_BW)
        law_BWV, kept_BW, token_BW = drafts.law_BWV, jnp.ones_like(is_read_BW), drafts.token_BW
        if scores.visual_BSV is not None:
            law_BWV, kept_BW, token_BW = self._couple(reader, drafts, scores, uniforms_BW4)
        # A forced token is the same in every pass.
        kept_BW |= mask_BW >= 0
        token_BW = jnp.where(mask_BW >= 0, mask_BW, token_BW)
        token_BW = jnp.where(is_read_BW, token_BW, drafts.token_BW)
        if law_BWV is not None:
            law_BWV = jnp.where(is_read_BW[..., None], law_BWV, drafts.law_BWV)

        # Up to the first that changed, that one included; a text takes one step at a time.
        run_B = jnp.cumprod(kept_BW & is_read_BW, axis=1).sum(axis=1)
        count_B = jnp.clip(run_B + 1, 1, jnp.maximum(is_read_BW.sum(axis=1), 1))
        drawn_B1 = reader.draw(scores._replace(visual_BSV=None), rows, offsets_BW[:, :1])
        committed_BW = jnp.where(is_drafted_BW, token_BW, drawn_B1)
        rows = rows.commit(committed_BW, count_B, reader.vocab)
        return State(cache, rows, self._moved(reader, rows, Drafts(token_BW, law_BWV), count_B))

    def _couple(self, reader: Reader, drafts: Drafts, scores, uniforms_BW4):
        """Returns the new laws, whether each draft is kept, and tokens that are draws from them."""
        visual_start = reader.vocab.visual_start
        code_BW = jnp.clip(drafts.token_BW - visual_start, 0, reader.vocab.codebook_size - 1)
        if drafts.law_BWV is None:
            best_BW = scores.visual_BSV.argmax(axis=-1).astype(jnp.int32)
            return None, best_BW == code_BW, visual_start + best_BW
        p_BWV = reader.law(scores.visual_BSV)
        kept_BW, code_BW = laws.coupled(p_BWV, drafts.law_BWV, code_BW, uniforms_BW4[..., :3])
        return p_BWV, kept_BW, visual_start + code_BW

    def _moved(self, reader: Reader, rows: Rows, drafts: Drafts, count_B: jax.Array) -> Drafts:
        """The window behind the tokens that were committed, filled up with fresh drafts."""
        from_BW = jnp.arange(self.width) + count_B[:, None]
        is_fresh_BW = from_BW >= self.width
        from_BW = jnp.minimum(from_BW, self.width - 1)
        token_BW = jnp.take_along_axis(drafts.token_BW, from_BW, axis=1)
        fresh = self._fresh(reader, rows)
        token_BW = jnp.where(is_fresh_BW, fresh.token_BW, token_BW)
        if drafts.law_BWV is None:
            return Drafts(token_BW, None)
        law_BWV = jnp.take_along_axis(drafts.law_BWV, from_BW[..., None], axis=1)
        return Drafts(token_BW, jnp.where(is_fresh_BW[..., None], fresh.law_BWV, law_BWV))
