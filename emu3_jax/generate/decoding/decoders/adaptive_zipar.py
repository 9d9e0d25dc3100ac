"""ZipAR that finds out how far a row must be ahead. An approximation, as `zipar` is.

The first code of a row is drawn as soon as the row above has `window` codes, but as a candidate x.
With the next code of the row above it has another law, p instead of q. It is kept with probability
min(1, p(x) / q(x)), and its row goes on; otherwise it is redrawn from max(0, p - q) / sum and waits
for one more code. When the row above is complete, it is kept as it is (arXiv:2412.04062, third
version). So a row waits where the end of the row above still matters to it. That the candidate no
longer changes does not make its law the model's.

With a window of w codes in a row, an image of h rows takes from (h - 1) min(window + 1, w) + w
passes, if every candidate is kept at once, to h w passes, those of `zipar` with a whole row.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.generate.decoding import laws
from emu3_jax.generate.decoding.constraints import VISUAL
from emu3_jax.generate.decoding.decoders.zipar import Fronts, Zipar, committed
from emu3_jax.generate.decoding.reader import Reader, Scores
from emu3_jax.generate.decoding.rows import Rows, State


class Candidates(NamedTuple):
    """The first code of the newest front of each request; only that front can be waiting.

    Attributes:
      waits_B: bool, whether there is a candidate that is not committed.
      code_B: int32, its code.
      law_BV: float32, the law that it is a draw from; None when decoding greedily.
    """

    waits_B: jax.Array
    code_B: jax.Array
    law_BV: jax.Array | None


@dataclasses.dataclass(frozen=True)
class AdaptiveZipar(Zipar):
    """See `decoder.Decoder`.

    What it keeps from pass to pass are `Fronts`, those of the schedule and the passes that they
    have waited, and `Candidates`.

    Attributes:
      window: codes that a row must be ahead of the one below at the least.
    """

    window: int = 4
    name: ClassVar[str] = "adaptive_zipar"

    def begin(self, reader: Reader, rows: Rows) -> tuple[Fronts, Candidates]:
        """Nobody has waited yet."""
        none_B = jnp.zeros_like(rows.step_B)
        shape = (*none_B.shape, reader.vocab.codebook_size)
        law_BV = None if reader.kind.filters.greedy else jnp.zeros(shape)
        return rows.schedule, Candidates(none_B > 0, none_B, law_BV)

    # `reach` is that of the schedule, in which nobody waits: never too little.

    def step(self, reader: Reader, state: State) -> State:
        """One pass: the next token of each front that has begun, or the last one once more."""
        rows, (fronts, before) = state.rows, state.drafts
        scores, cache, offset_BS = self.read(reader, state, fronts)
        drawn_BS = reader.draw(scores, rows, offset_BS)
        now = before
        if scores.visual_BSV is not None:
            visual_start, offset_B = reader.vocab.visual_start, offset_BS[:, 0]
            now = self._candidates(reader, rows, fronts, before, scores, drawn_BS, offset_B)
            token_B = jnp.where(before.waits_B, visual_start + now.code_B, drawn_BS[:, 0])
            drawn_BS = drawn_BS.at[:, 0].set(token_B)
            offset_BS = offset_BS.at[:, 0].set(jnp.where(now.waits_B, -1, offset_B))
            fronts = _delayed(rows, fronts, offset_B, now.waits_B)
        rows = committed(rows, fronts, drawn_BS, offset_BS, reader.vocab)
        return State(cache, rows, (fronts, now))

    def _candidates(
        self,
        reader: Reader,
        rows: Rows,
        fronts: Fronts,
        before: Candidates,
        scores: Scores,
        drawn_BS: jax.Array,
        offset_B: jax.Array,
    ) -> Candidates:
        """The candidates after this pass; `offset_B` names what the newest fronts have read."""
        offset_B1, now_B1 = offset_B[:, None], rows.forwards_B[:, None]
        uniform_B3 = reader.uniforms(3, rows, offset_B1, now_B1)[:, 0]
        if before.law_BV is None:
            law_BV, best_B = None, scores.visual_BSV[:, 0].argmax(axis=-1).astype(jnp.int32)
            kept_B, code_B = best_B == before.code_B, best_B
        else:
            law_BV = reader.law(scores.visual_BSV[:, :1])[:, 0]
            kept_B, code_B = laws.coupled(law_BV, before.law_BV, before.code_B, uniform_B3)
        code_B = jnp.where(before.waits_B, code_B, drawn_BS[:, 0] - reader.vocab.visual_start)
        # The first code behind something forced, of an image that has codes above it.
        is_first_B = (rows.mask_at(offset_B1)[:, 0] == VISUAL) & (offset_B > 0)
        is_first_B &= rows.mask_at(offset_B1 - 1)[:, 0] >= 0
        columns_N = jnp.arange(fronts.pass_BN.shape[1])
        is_missing_BN = (columns_N < offset_B1) & (fronts.pass_BN > now_B1)
        waits_B = is_first_B & is_missing_BN.any(axis=1) & ~(before.waits_B & kept_B)
        return Candidates(waits_B, code_B, law_BV)


def _delayed(rows: Rows, fronts: Fronts, offset_B: jax.Array, waits_B: jax.Array) -> Fronts:
    """The fronts if the newest one reads its token once more, and all behind it wait with it."""
    start_BI, first_BI, pass_BN = fronts
    newest_B1 = (start_BI <= rows.forwards_B[:, None]).sum(axis=1, keepdims=True) - 1
    is_behind_BI = jnp.arange(start_BI.shape[1]) >= newest_B1
    is_behind_BN = jnp.arange(pass_BN.shape[1]) >= offset_B[:, None]
    more_B1 = waits_B[:, None].astype(jnp.int32)
    start_BI = start_BI + jnp.where(is_behind_BI, more_B1, 0)
    return Fronts(start_BI, first_BI, pass_BN + jnp.where(is_behind_BN, more_B1, 0))
