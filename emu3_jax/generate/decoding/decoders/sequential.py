"""One token after the other: each forward pass reads the last token and draws the next."""

import dataclasses

import jax
import jax.numpy as jnp

from emu3_jax.generate.decoding.reader import Reader
from emu3_jax.generate.decoding.rows import Rows, State


@dataclasses.dataclass(frozen=True)
class Sequential:
    """See `decoder.Decoder`."""

    width: int = dataclasses.field(default=1, init=False)

    def fitted(self, masks) -> "Sequential":
        """Itself: it needs to know nothing of them."""
        del masks
        return self

    def schedule(self, mask, columns) -> tuple:
        """Nothing."""
        del mask, columns
        return ()

    def begin(self, reader: Reader, rows: Rows) -> tuple:
        """Nothing."""
        del reader, rows
        return ()

    def reach(self, rows: Rows) -> jax.Array:
        """All tokens that are committed."""
        return rows.step_B

    def step(self, reader: Reader, state: State) -> State:
        """One token of each row."""
        rows = state.rows
        offsets_B1 = rows.step_B[:, None]
        scores, cache = reader.read(state, rows.last_R[:, None], offsets_B1)
        token_B1 = reader.draw(scores, rows, offsets_B1)
        rows = rows.commit(token_B1, jnp.ones_like(rows.step_B), reader.vocab)
        return State(cache, rows, ())
