"""ZipAR: several rows of an image at once. An approximation: the law is not the model's.

The first code of a row is drawn as soon as the row above has `window` codes; from then on both
grow by one code in each forward pass (arXiv:2412.04062). The end of the row above, which raster
order would have seen, is missing from what such a code depends on. A code attends to all codes
before it in raster order that have been read, and to no other slot.

An image of h rows of w codes takes (h - 1) min(window, w) + w passes. With a window of a whole row,
order and draws are those of `sequential`. Texts are decoded one token at a time.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.generate.decoding import constraints
from emu3_jax.generate.decoding.reader import Reader, Scores
from emu3_jax.generate.decoding.rows import Rows, State
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.vocab import Vocab

NEVER = 2**30  # a pass that there is not; some more can be added to it in int32


class Fronts(NamedTuple):
    """When each token is read. A front is a run of drawn tokens with the forced ones before it.

    A token is named by the offset of the next one, which its pass gives the law of.

    Attributes:
      start_BI: int32, the pass in which front i reads its first token; NEVER if there is no front.
      first_BI: int32, the name of that token.
      pass_BN: int32, the pass in which each token is read; NEVER for those that need not be.
    """

    start_BI: jax.Array
    first_BI: jax.Array
    pass_BN: jax.Array


@dataclasses.dataclass(frozen=True)
class Zipar:
    """See `decoder.Decoder`.

    Attributes:
      window: codes by which a row must be ahead of the one below (paper: 7 for Emu3).
      width: fronts that are read at once; set by `fitted`.
      fronts: fronts of an answer; set by `fitted`.
    """

    window: int = 7
    width: int = 1
    fronts: int = 1
    name: ClassVar[str] = "zipar"

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window={self.window} of {self.name} must be at least 1 code.")

    def fitted(self, masks: Sequence[np.ndarray]) -> "Zipar":
        """This decoder with room for the fronts of answers with these constraint masks."""
        width = fronts = 1
        for mask in {mask.tobytes(): mask for mask in masks}.values():
            start_I, first_I, last_I = _fronts(mask, self.window)
            passes = start_I + last_I - first_I
            at_once = [((start_I <= at) & (at <= passes)).sum() for at in start_I]
            width = max(width, *map(int, at_once)) if at_once else width
            fronts = max(fronts, len(start_I))
        return dataclasses.replace(self, width=width, fronts=fronts)

    def schedule(self, mask: np.ndarray, columns: int) -> Fronts:
        """The fronts of one answer, without B."""
        start_I, first_I, last_I = _fronts(mask, self.window)
        pass_N = np.full(columns, NEVER, np.int32)
        for start, first, last in zip(start_I, first_I, last_I, strict=True):
            pass_N[first : last + 1] = start + np.arange(last + 1 - first)
        room = (0, self.fronts - len(start_I))
        return Fronts(
            np.pad(start_I, room, constant_values=NEVER).astype(np.int32),
            np.pad(first_I, room).astype(np.int32),
            pass_N,
        )

    def begin(self, reader: Reader, rows: Rows) -> tuple:
        """Nothing: what has been read follows from the number of passes."""
        del reader, rows
        return ()

    def reach(self, rows: Rows) -> jax.Array:
        """The furthest token that has been read."""
        pass_BN = rows.schedule.pass_BN
        columns_N = 1 + jnp.arange(pass_BN.shape[1])
        return jnp.where(pass_BN < rows.forwards_B[:, None], columns_N, 0).max(axis=1)

    def step(self, reader: Reader, state: State) -> State:
        """One pass: the next token of each front that has begun."""
        rows, fronts = state.rows, state.rows.schedule
        scores, cache, offset_BS = self.read(reader, state, fronts)
        drawn_BS = reader.draw(scores, rows, offset_BS)
        return State(cache, committed(rows, fronts, drawn_BS, offset_BS, reader.vocab), ())

    def read(
        self, reader: Reader, state: State, fronts: Fronts
    ) -> tuple[Scores, KVCache, jax.Array]:
        """Reads the token of each front whose pass it is, the newest front first.

        Returns:
          As `Reader.read`, and the names of the tokens, int32 [B, S]; -1 where none was read.
        """
        rows = state.rows
        now_B1 = rows.forwards_B[:, None]
        newest_B1 = (fronts.start_BI <= now_B1).sum(axis=1, keepdims=True) - 1
        front_BS = newest_B1 - jnp.arange(self.width)
        inside_BS = jnp.maximum(front_BS, 0)
        start_BS = jnp.take_along_axis(fronts.start_BI, inside_BS, axis=1)
        first_BS = jnp.take_along_axis(fronts.first_BI, inside_BS, axis=1)
        offset_BS = rows.inside(first_BS + now_B1 - start_BS)
        is_now_BS = jnp.take_along_axis(fronts.pass_BN, offset_BS, axis=1) == now_B1
        offset_BS = jnp.where((front_BS >= 0) & is_now_BS, offset_BS, -1)

        before_BS = rows.inside(offset_BS - 1)
        forced_BS = rows.mask_at(before_BS)
        token_BS = jnp.take_along_axis(rows.new_BN, before_BS, axis=1)
        token_BS = jnp.where(forced_BS >= 0, forced_BS, token_BS)
        is_first_RS = rows.per_branch(offset_BS == 0)
        token_RS = jnp.where(is_first_RS, rows.last_R[:, None], rows.per_branch(token_BS))
        written_RC = _written(reader, rows, fronts)
        return *reader.read(state, token_RS, offset_BS, written_RC), offset_BS


def _written(reader: Reader, rows: Rows, fronts: Fronts) -> jax.Array:
    """The slots of tokens that have been read, bool [R, live]."""
    offset_RC = jnp.arange(reader.live) - rows.first_positions()[:, None]
    pass_RN = rows.per_branch(fronts.pass_BN)
    at_RC = jnp.take_along_axis(pass_RN, rows.inside(offset_RC), axis=1)
    is_read_RC = (at_RC < rows.per_branch(rows.forwards_B)[:, None]) & (
        offset_RC < pass_RN.shape[1]
    )
    return (offset_RC < 0) | is_read_RC


def _fronts(mask: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each front: the pass of its first token, the names of its first and its last token."""
    free = np.flatnonzero(mask < 0)
    if not len(free):
        return (np.zeros(0, int),) * 3
    breaks = np.flatnonzero(np.diff(free) > 1)
    begins_I = np.concatenate([free[:1], free[breaks + 1]])  # the first free offset of each run
    last_I = np.concatenate([free[breaks], free[-1:]])
    # The token before offset 0 is the last of the prompt; the last code of a row is read too, and
    # gives what is forced behind it.
    first_I = np.concatenate([[0], last_I[:-1] + 2])
    ends_I = np.concatenate([last_I[:-1] + 1, last_I[-1:]])
    forced_I, lengths_I = begins_I - first_I, last_I - begins_I + 1
    # A front draws its first code behind `window` codes of the front above, and does not begin
    # before that one. With a window of a whole row, the tokens before it are read in raster order.
    drawn_I = forced_I + np.minimum(lengths_I, window)
    early_I = np.where(lengths_I[:-1] > window, forced_I[1:], 0)
    start_I = np.cumsum(np.maximum(drawn_I[:-1] - early_I, 0))
    return np.concatenate([[0], start_I]), first_I, ends_I


def committed(
    rows: Rows, fronts: Fronts, drawn_BS: jax.Array, offset_BS: jax.Array, vocab: Vocab
) -> Rows:
    """The rows with the tokens that were drawn; none where the offset is -1."""
    is_free_BN = rows.mask_BN < 0
    columns_N = jnp.arange(rows.mask_BN.shape[1])
    is_here_BSN = (offset_BS[..., None] == columns_N) & ~rows.finished_B[:, None, None]
    token_BN = jnp.where(is_here_BSN, drawn_BS[..., None], 0).sum(axis=1)
    new_BN = jnp.where(is_here_BSN.any(axis=1), token_BN, rows.new_BN)
    # Up to the first token that has not been drawn; forced ones need not be.
    is_missing_BN = is_free_BN & (fronts.pass_BN > rows.forwards_B[:, None])
    is_missing_BN &= columns_N < rows.length_B[:, None]
    none_B = ~is_missing_BN.any(axis=1)
    step_B = jnp.where(none_B, rows.length_B, jnp.argmax(is_missing_BN, axis=1))
    is_end_BN = is_free_BN & constraints.is_end(new_BN, rows.mask_BN, vocab)
    is_end_BN &= columns_N < step_B[:, None]
    ends_B = is_end_BN.any(axis=1)
    step_B = jnp.where(ends_B, jnp.argmax(is_end_BN, axis=1) + 1, step_B)
    is_forced_BN = ~is_free_BN & (columns_N < step_B[:, None])
    new_BN = jnp.where(is_forced_BN, rows.mask_BN, new_BN)
    count_B = (is_here_BSN.any(axis=1) & is_free_BN).sum(axis=1)
    sizes_W = 1 + jnp.arange(rows.commits_BW.shape[1])
    return rows._replace(
        step_B=jnp.where(rows.finished_B, rows.step_B, step_B),
        new_BN=new_BN,
        finished_B=rows.finished_B | ends_B | none_B,
        forwards_B=rows.forwards_B + ~rows.finished_B,
        commits_BW=rows.commits_BW + (sizes_W == count_B[:, None]),
    )
