"""What a decoder is: the one thing that differs between the ways to decode."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from emu3_jax.generate.decoding.reader import Reader
from emu3_jax.generate.decoding.rows import Rows, State


class Decoder(Protocol):
    """One way to decode. It is hashable: programs are compiled for it.

    Attributes:
      width: the most tokens that a row reads in a forward pass.
    """

    width: int

    def fitted(self, masks: Sequence[np.ndarray]) -> "Decoder":
        """This decoder with what it must know of all constraint masks of a batch."""

    def schedule(self, mask: np.ndarray, columns: int) -> Any:
        """What an answer with this mask, in a batch of `columns` new tokens, needs in each pass.

        It is made once, on the host: arrays without B, which are stacked to `Rows.schedule`.
        """

    def begin(self, reader: Reader, rows: Rows) -> Any:
        """What the decoder keeps from pass to pass, for rows without new tokens; B comes first."""

    def reach(self, rows: Rows) -> jax.Array:
        """The offsets of the tokens that the next pass may attend to lie before this, int32 [B]."""

    def step(self, reader: Reader, state: State) -> State:
        """One forward pass: reads tokens with `reader`, commits at least one of each row."""
