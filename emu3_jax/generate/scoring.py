"""What the model thinks of tokens that are there: negative log-likelihoods by task and kind.

The sums are taken per token on the host in float64, so the batch size and the packing change
nothing but the last bits. The loss weights of training play no part.

Under an active mesh the weights are used where they lie, also among several processes, which then
all read the same documents and get the same result.
"""

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emu3_jax import sequence, sharding
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.cross_entropy import chunked_cross_entropy
from emu3_jax.sequence import TokenClass

# Rows are a multiple of this, so that few shapes are compiled.
ROW_MULTIPLE = 64


class Tally:
    """Sums of negative log-likelihood and numbers of targets, by task and token class."""

    def __init__(self, tasks: Sequence[Hashable]):
        self.tasks = tuple(tasks)
        self.nll = np.zeros((len(self.tasks), len(TokenClass)), np.float64)
        self.count = np.zeros((len(self.tasks), len(TokenClass)), np.int64)

    def add(self, nll: np.ndarray, task: np.ndarray, classes: np.ndarray) -> None:
        """Adds targets, arrays of one shape; those of class PAD count for nothing."""
        real = classes != TokenClass.PAD
        where = (task[real], classes[real])
        np.add.at(self.nll, where, nll[real].astype(np.float64))
        np.add.at(self.count, where, 1)


def score_documents(
    bundle: Bundle,
    documents: Mapping[Hashable, Sequence[sequence.Sequence]],
    batch_size: int,
    row_length: int = 0,
    done: Callable[[int], None] = lambda count: None,
) -> Tally:
    """Scores documents by task.

    Args:
      bundle: the model.
      documents: task → sequences.
      batch_size: rows at a time; under an active mesh as many more as it takes to cut them.
      row_length: see `packed_batches`.
      done: called after each batch with the number of its targets.
    """
    ways = _ways_of_a_batch()
    tally, scorer = Tally(tuple(documents)), _scorer(bundle.model)
    for batch in packed_batches(documents, row_length, -(-batch_size // ways) * ways):
        arrays = [batch[k] for k in ("inputs", "targets", "positions", "segment_ids")]
        nll_BS = np.asarray(scorer(bundle.variables, *arrays))
        tally.add(nll_BS, batch["sources"], batch["classes"])
        done(np.count_nonzero(batch["segment_ids"]))
    return tally


@functools.lru_cache(maxsize=2)
def _scorer(model: nn.Module):
    """Jitted (variables, inputs, targets, positions, segment_ids) → float32 [B, S]."""

    def nll(variables, inputs_BS, targets_BS, positions_BS, segment_ids_BS):
        hidden_BSD = model.apply(
            variables, inputs_BS, positions_BS, segment_ids_BS, method="hidden"
        )
        nll_BS = chunked_cross_entropy(
            hidden_BSD,
            nn.meta.unbox(variables)["params"]["lm_head"]["kernel"],
            targets_BS,
            jnp.ones(targets_BS.shape),
            vocab_size=model.config.vocab_size,
        ).nll
        return sharding.constrain(nll_BS, None, None)  # whole everywhere: every host reads it

    return jax.jit(nll)


def packed_batches(
    documents: Mapping[Hashable, Sequence[sequence.Sequence]], row_length: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Packs documents, longest first, into rows, and rows into batches of one shape.

    Targets that training leaves out (weight 0, such as the questions of a chat) get class PAD.

    Args:
      documents: task → sequences; `sources` holds the index of the task in this mapping.
      row_length: tokens a row, 0 for what the longest document needs.
      batch_size: rows a batch; the last one is filled up with empty rows.

    Raises:
      ValueError: a document is longer than `row_length`.
    """
    flat = [(s, index) for index, group in enumerate(documents.values()) for s in group]
    flat.sort(key=lambda pair: -len(pair[0]))
    longest = len(flat[0][0]) - 1
    row_length = row_length or -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE
    if longest > row_length:
        raise ValueError(f"a document of {longest} tokens does not fit into rows of {row_length}")
    rows: list[list] = []
    room = 0
    for built, source in flat:
        if len(built) - 1 > room:
            rows.append([])
            room = row_length
        rows[-1].append((built, source))
        room -= len(built) - 1
    for start in range(0, len(rows), batch_size):
        yield _batch(rows[start : start + batch_size], batch_size, row_length)


def _batch(rows: Sequence[Sequence], batch_size: int, row_length: int) -> dict[str, np.ndarray]:
    names = ("inputs", "targets", "classes", "sources", "segment_ids", "positions")
    batch = {name: np.zeros((batch_size, row_length), np.int32) for name in names}
    for r, row in enumerate(rows):
        start = 0
        for number, (built, source) in enumerate(row, start=1):
            count = len(built) - 1
            place = (r, slice(start, start + count))
            batch["inputs"][place] = built.ids[:-1]
            batch["targets"][place] = built.ids[1:]
            scored = built.weights[1:] > 0
            batch["classes"][place] = np.where(scored, built.classes[1:], TokenClass.PAD)
            batch["sources"][place] = source
            batch["segment_ids"][place] = number
            batch["positions"][place] = np.arange(count)
            start += count
    return batch


def _ways_of_a_batch() -> int:
    """Into how many parts the active mesh cuts the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else sharding.mesh_axes("batch")
    return math.prod(mesh.shape[axis] for axis in axes)
