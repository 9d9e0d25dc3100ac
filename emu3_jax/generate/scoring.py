"""Negative log-likelihoods of given tokens, by task and token class.

Documents longer than the model's context are cut or dropped as in training (`data.tokens.cutting`).

Sums are taken per token on the host in float64, so the batch size and the packing change nothing
but the last bits. The loss weights of training are not used.

On a mesh the weights stay where they are. With several processes, all of them read the same
documents and get the same result.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emu3_jax import sequence, sharding
from emu3_jax.data.tokens import packing
from emu3_jax.data.tokens.cutting import Piece, Tokens, ends_of, is_cut, pieces
from emu3_jax.generate.decoding.lowering import abstract_params
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.language import int8
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.models.language.transformer import Transformer, TransformerConfig, check_mesh
from emu3_jax.sequence import TokenClass

# Rows are a multiple of this, so that few shapes are compiled.
ROW_MULTIPLE = 64
# The arrays of a batch that the model and the loss read.
SCORED = ("inputs", "targets", "positions", "segment_ids")


class Tally:
    """Sums of negative log-likelihood and numbers of targets, by task and token class."""

    def __init__(self, tasks: Sequence[Hashable]):
        self.tasks = tuple(tasks)
        self.nll = np.zeros((len(self.tasks), len(TokenClass)), np.float64)
        self.count = np.zeros((len(self.tasks), len(TokenClass)), np.int64)

    def add(self, nll: np.ndarray, task: np.ndarray, classes: np.ndarray) -> None:
        """Adds targets, arrays of one shape; those of class PAD are ignored."""
        real = classes != TokenClass.PAD
        where = (task[real], classes[real])
        np.add.at(self.nll, where, nll[real].astype(np.float64))
        np.add.at(self.count, where, 1)


class Fitted(NamedTuple):
    """Documents made to fit a model's context; see `fit`.

    Attributes:
      tasks: the tasks; `source` of a piece is an index into them.
      pieces: what is scored.
      row_length: tokens per row into which the pieces are packed.
      cut, dropped: numbers of documents that were longer than the context.
    """

    tasks: tuple[Hashable, ...]
    pieces: list[Piece]
    row_length: int
    cut: int
    dropped: int

    @property
    def targets(self) -> int:
        """Tokens of all pieces."""
        return sum(stop - start for _, start, stop in self.pieces)


def fit(
    documents: Mapping[Hashable, Sequence[sequence.Sequence]],
    max_context: int | None = None,
    row_length: int = 0,
) -> Fitted:
    """Cuts and drops documents as training does.

    Targets that training leaves out (weight 0, such as the questions of a chat) get the class PAD.

    Args:
      documents: task → sequences.
      max_context: tokens that the model may read at once; None for no limit.
      row_length: tokens per row, a limit too; 0: what the longest piece needs.

    Raises:
      ValueError: no document fits.
    """
    context = min(filter(None, (max_context, row_length)), default=None)
    flat = [_scored(built, i) for i, group in enumerate(documents.values()) for built in group]
    longest = max(len(tokens.ids) - 1 for tokens in flat)
    of_each = [pieces(tokens, context or longest) for tokens in flat]
    dropped = sum(not found for found in of_each)
    if dropped == len(flat):
        raise ValueError(f"none of the {dropped} documents fits into {context} tokens")
    chosen = [piece for found in of_each for piece in found]
    longest = max(stop - start for _, start, stop in chosen)
    row_length = row_length or -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE
    return Fitted(tuple(documents), chosen, row_length, sum(map(is_cut, of_each)), dropped)


def score(
    bundle: Bundle,
    fitted: Fitted,
    batch_size: int,
    done: Callable[[int], None] = lambda count: None,
) -> Tally:
    """Scores documents by task.

    Args:
      bundle: the model.
      fitted: the documents, made to fit `bundle.max_context`.
      batch_size: rows per batch; on a mesh rounded up so that they can be sharded.
      done: called after each batch with the number of its targets.
    """
    rows = rows_of_batch(jax.sharding.get_abstract_mesh(), batch_size)
    tally, nll_of = Tally(fitted.tasks), scorer(bundle.model)
    for batch in packed_batches(fitted, rows):
        arrays = [sharding.spread(batch[name], "batch", "sequence") for name in SCORED]
        nll_BS = np.asarray(nll_of(bundle.variables, *arrays))
        tally.add(nll_BS, batch["sources"], batch["classes"])
        done(np.count_nonzero(batch["segment_ids"]))
    return tally


def token_nats(bundle: Bundle, built: sequence.Sequence) -> np.ndarray:
    """-log p of each token of a document given those before it, but of BOS: float32 [S - 1].

    Raises:
      ValueError: the document is longer than the model's context.
    """
    targets = len(built.ids) - 1
    if bundle.max_context is not None and targets > bundle.max_context:
        raise ValueError(
            f"the document has {targets} tokens to predict, more than the context of "
            f"{bundle.max_context}"
        )
    fitted = fit({0: [built]})
    (batch,) = packed_batches(fitted, rows_of_batch(jax.sharding.get_abstract_mesh(), 1))
    arrays = [sharding.spread(batch[name], "batch", "sequence") for name in SCORED]
    return np.asarray(scorer(bundle.model)(bundle.variables, *arrays))[0, :targets]


def rows_of_batch(mesh, batch_size: int) -> int:
    """`batch_size`, rounded up to a number of rows that can be sharded over `mesh`."""
    ways = sharding.ways_of(mesh, "batch")
    return -(-batch_size // ways) * ways


@functools.lru_cache(maxsize=2)
def scorer(model: nn.Module):
    """Jitted (variables, inputs, targets, positions, segment_ids) → float32 [B, S]."""

    def nll(variables, inputs_BS, targets_BS, positions_BS, segment_ids_BS):
        with int8.reading():
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
        return sharding.gathered(nll_BS)

    return jax.jit(nll)


def lower(
    config: TransformerConfig, mesh: jax.sharding.Mesh, *, batch_size: int, row_length: int
) -> jax.stages.Lowered:
    """Ahead-of-time lowering of what `score` runs for one batch; needs no weights.

    Args:
      config: of the model; weights are in its compute type.
      mesh: the mesh that is set when documents are scored.
      batch_size: as in `score`.
      row_length: as in `fit`.

    Raises:
      ValueError: the model or the rows do not fit the mesh.
    """
    check_mesh(config, mesh)
    sharding.check_divides(mesh, "sequence", "row_length", row_length)
    shape = (rows_of_batch(mesh, batch_size), row_length)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
    model = Transformer(config)
    with jax.set_mesh(mesh):
        variables = {"params": abstract_params(model, mesh)}
        return scorer(model).lower(variables, *[rows] * len(SCORED))


def packed_batches(fitted: Fitted, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Packs pieces into rows as training does, and rows into batches of one shape.

    Args:
      fitted: from `fit`; `sources` holds the indices of its tasks.
      batch_size: rows per batch; the last one is filled up with empty rows.

    Yields:
      The arrays [batch_size, row_length] that `packing.FIELDS` names.
    """
    row_length = fitted.row_length
    rows = packing.best_fit([stop - start for _, start, stop in fitted.pieces], row_length)
    rows += [[]] * (-len(rows) % batch_size)
    for start in range(0, len(rows), batch_size):
        arrays = [
            packing.assemble([fitted.pieces[i] for i in row], row_length, pad=0)
            for row in rows[start : start + batch_size]
        ]
        yield {name: np.stack([row[name] for row in arrays]) for name in packing.FIELDS}


def _scored(built: sequence.Sequence, source: int) -> Tokens:
    """The document, with the class PAD for targets that training leaves out."""
    classes = np.where(built.weights > 0, built.classes, TokenClass.PAD)
    return Tokens(built.ids, built.weights, classes, source, ends_of(built))
