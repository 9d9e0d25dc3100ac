"""The state of a batch on the device: what its requests ask for, and how far each has come."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax import sharding
from emu3_jax.generate.decoding import constraints
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.vocab import Vocab

# The fields of `Rows` that a pass changes.
CHANGING = ("last_R", "step_B", "new_BN", "finished_B", "forwards_B", "commits_BW")


class Rows(NamedTuple):
    """B requests. Each takes one row of the cache, or two neighbouring ones if the batch is guided.

    Offset t of an answer is its t-th new token. A row's slot c holds the token at position c: those
    of the prompt, then the answer's.

    Attributes:
      prompt_R: int32 [R], tokens of the row's prompt, of which all but the last have been read.
      mask_BN: int32, the constraint mask of each answer (`constraints`); N new tokens at most.
      choices_BA: int32, the ids that an entry CHOICE of the mask allows, and -1; A is mostly 0.
      length_B: int32, the most new tokens of each answer.
      guided_B: bool, whether the request has an unconditional branch.
      number_B: int32, the number of each request, which selects its draws.
      last_R: int32, the last token of each row, which has not been read.
      step_B: int32, new tokens so far.
      new_BN: int32, the new tokens; PAD from `step_B` on.
      finished_B: bool.
      forwards_B: int32, forward passes so far.
      commits_BW: int32, how many of them committed 1, 2, … W tokens.
      schedule: what the decoder made of each mask (`Decoder.schedule`).
    """

    prompt_R: jax.Array
    mask_BN: jax.Array
    choices_BA: jax.Array
    length_B: jax.Array
    guided_B: jax.Array
    number_B: jax.Array
    last_R: jax.Array
    step_B: jax.Array
    new_BN: jax.Array
    finished_B: jax.Array
    forwards_B: jax.Array
    commits_BW: jax.Array
    schedule: Any = ()

    @property
    def branches(self) -> int:
        """Rows of the cache for each request."""
        return self.prompt_R.size // self.step_B.size

    def per_branch(self, x_B: jax.Array) -> jax.Array:
        """Numbers of requests for each row of the cache, [R, …]."""
        return jnp.repeat(x_B, self.branches, axis=0)

    def first_positions(self) -> jax.Array:
        """The position of the token before offset 0, int32 [R]."""
        return self.prompt_R - 1

    def mask_at(self, offsets_BS: jax.Array) -> jax.Array:
        """Entries of the constraint mask, int32 [B, S]; of the nearest offset, if there is none."""
        return jnp.take_along_axis(self.mask_BN, self.inside(offsets_BS), axis=1)

    def inside(self, offsets_BS: jax.Array) -> jax.Array:
        """The nearest offsets that there are."""
        return jnp.clip(offsets_BS, 0, self.mask_BN.shape[1] - 1)

    def commit(self, token_BS: jax.Array, count_B: jax.Array, vocab: Vocab) -> "Rows":
        """The rows with their next `count_B` tokens, 1 to S; a finished row takes none.

        A row ends behind its first EOS, behind a BOI that it was free to choose, or when it has
        `length_B` tokens.
        """
        within_S = jnp.arange(token_BS.shape[1])
        mask_BS = self.mask_at(self.step_B[:, None] + within_S)
        is_end_BS = constraints.is_end(token_BS, mask_BS, vocab) & (within_S < count_B[:, None])
        ends_B = is_end_BS.any(axis=1)
        count_B = jnp.where(ends_B, jnp.argmax(is_end_BS, axis=1) + 1, count_B)
        count_B = jnp.where(self.finished_B, 0, jnp.minimum(count_B, self.length_B - self.step_B))
        # The token of each column, from the window.
        at_BN = jnp.arange(self.new_BN.shape[1]) - self.step_B[:, None]
        is_new_BN = (at_BN >= 0) & (at_BN < count_B[:, None])
        at_BN = jnp.clip(at_BN, 0, token_BS.shape[1] - 1)
        new_BN = jnp.where(is_new_BN, jnp.take_along_axis(token_BS, at_BN, axis=1), self.new_BN)
        at_B = jnp.maximum(count_B - 1, 0)[:, None]
        last_R = self.per_branch(jnp.take_along_axis(token_BS, at_B, axis=1)[:, 0])
        step_B = self.step_B + count_B
        sizes_W = 1 + jnp.arange(self.commits_BW.shape[1])
        return self._replace(
            last_R=jnp.where(self.per_branch(count_B > 0), last_R, self.last_R),
            step_B=step_B,
            new_BN=new_BN,
            finished_B=self.finished_B | ends_B | (step_B >= self.length_B),
            forwards_B=self.forwards_B + ~self.finished_B,
            commits_BW=self.commits_BW + (sizes_W == count_B[:, None]),
        )

    def gathered(self) -> "Rows":
        """The rows with what a pass changes replicated on every device, for the host to read."""
        return self._replace(**{name: sharding.gathered(getattr(self, name)) for name in CHANGING})

    def updated(self, rows: "Rows") -> "Rows":
        """These rows, of the host, with what passes have changed in those of the device."""
        return self._replace(**{name: np.asarray(getattr(rows, name)) for name in CHANGING})


def empty(
    size: int, columns: int, choices: int, schedule: Any, *, branches: int, width: int, pad: int
) -> Rows:
    """Rows without requests, on the host: all are finished.

    Args:
      size: B.
      columns: N.
      choices: A.
      schedule: what the decoder makes of an empty mask.
      branches: rows of the cache for each request.
      width: W.
      pad: the id PAD.
    """
    none_B = np.zeros(size, np.int32)
    return Rows(
        prompt_R=np.ones(size * branches, np.int32),
        mask_BN=np.full((size, columns), pad, np.int32),
        choices_BA=np.full((size, choices), -1, np.int32),
        length_B=none_B,
        guided_B=np.zeros(size, bool),
        number_B=none_B,
        last_R=np.zeros(size * branches, np.int32),
        step_B=none_B,
        new_BN=np.full((size, columns), pad, np.int32),
        finished_B=np.ones(size, bool),
        forwards_B=none_B,
        commits_BW=np.zeros((size, width), np.int32),
        schedule=jax.tree.map(lambda x: np.stack([x] * size), schedule),
    )


class State(NamedTuple):
    """What the loop carries from forward pass to forward pass.

    Attributes:
      cache: of R rows.
      rows: the requests.
      drafts: what the decoder keeps of its own.
    """

    cache: KVCache
    rows: Rows
    drafts: Any
