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
from emu3_jax.data import packing
from emu3_jax.data.mixture import Tokens
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
    """Packs documents into rows as training does, and rows into batches of one shape.

    Targets that training leaves out (weight 0, such as the questions of a chat) get class PAD.

    Args:
      documents: task → sequences; `sources` holds the index of the task in this mapping.
      row_length: tokens a row, 0 for what the longest document needs.
      batch_size: rows a batch; the last one is filled up with empty rows.

    Yields:
      The arrays [batch_size, row_length] that `packing.FIELDS` names.

    Raises:
      ValueError: a document is longer than `row_length`.
    """
    flat = [
        _scored(built, index) for index, group in enumerate(documents.values()) for built in group
    ]
    lengths = [len(tokens.ids) - 1 for tokens in flat]
    row_length = row_length or -(-max(lengths) // ROW_MULTIPLE) * ROW_MULTIPLE
    if max(lengths) > row_length:
        raise ValueError(
            f"a document of {max(lengths)} tokens does not fit into rows of {row_length}"
        )
    rows = packing.best_fit(lengths, row_length)
    rows += [[]] * (-len(rows) % batch_size)
    for start in range(0, len(rows), batch_size):
        arrays = [
            packing.assemble([(flat[i], 0, lengths[i]) for i in row], row_length, pad=0)
            for row in rows[start : start + batch_size]
        ]
        yield {name: np.stack([row[name] for row in arrays]) for name in packing.FIELDS}


def _scored(built: sequence.Sequence, source: int) -> Tokens:
    """The document with class PAD where training leaves a target out."""
    classes = np.where(built.weights > 0, built.classes, TokenClass.PAD)
    return Tokens(built.ids, built.weights, classes, source, whole=True)


def _ways_of_a_batch() -> int:
    """Into how many parts the active mesh cuts the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else sharding.mesh_axes("batch")
    return math.prod(mesh.shape[axis] for axis in axes)
