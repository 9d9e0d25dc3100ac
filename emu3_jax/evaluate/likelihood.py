"""How well the model predicts held-out documents: nats a token, by kind of token and by task.

Every figure is (sum of negative log-likelihoods) / (number of targets) over the whole split. The
sums are taken per token on the host in float64, so the batch size and the packing change nothing
but the last bits. The loss weights of training play no part.

Under an active mesh the weights are used where they lie, also among several processes, which then
all read the same documents and get the same result.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emu3_jax import sequence, sharding
from emu3_jax.evaluate import token_documents
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import TokenClass
from emu3_jax.train.loss import chunked_cross_entropy

CLASSES = (TokenClass.TEXT, TokenClass.IMAGE, TokenClass.VIDEO, TokenClass.STRUCTURE)


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

    def metrics(self) -> dict[str, float]:
        """Nats and perplexity of each class and of all targets, then task by task.

        Names: nats_<class>, nats_all; nats_<task>_on_<class>, nats_<task>_on_all; perplexity
        likewise where it is of everything or of one class.
        """
        metrics = {}
        for c in CLASSES:
            metrics |= _nats(c.name.lower(), self.nll[:, c], self.count[:, c])
        metrics |= _nats("all", self.nll, self.count)
        for i, task in enumerate(self.tasks):
            for c in CLASSES:
                part = _nats(f"{task}_on_{c.name.lower()}", self.nll[i, c], self.count[i, c])
                metrics |= {name: v for name, v in part.items() if name.startswith("nats")}
            metrics |= _nats(f"{task}_on_all", self.nll[i], self.count[i])
        return metrics | {"targets": int(self.count.sum())}

    def table(self) -> Table:
        """One row for each task and class that occur together."""
        rows = [
            (task, c.name.lower(), round(self.nll[i, c] / self.count[i, c], 5), self.count[i, c])
            for i, task in enumerate(self.tasks)
            for c in CLASSES
            if self.count[i, c]
        ]
        rows = [(task, kind, float(nats), int(count)) for task, kind, nats, count in rows]
        return Table(("task", "tokens", "nats", "targets"), tuple(rows))


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Nats a token and perplexity on every task that the documents of a split allow.

    Attributes:
      split: a sub-folder of the subject's `tokens`.
      rows: documents are packed into rows of this many tokens; 0 for the longest document.
    """

    split: str = "validation"
    rows: int = 0
    name: str = "likelihood"

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """See Evaluator."""
        return {"bundle": (), "tokens": (self.split,)}

    def run(self, subject: Subject) -> Result:
        """See Evaluator."""
        subject.need(self.name, *self.needs)
        documents = token_documents.documents_by_task(
            token_documents.dataset_path(subject.tokens, self.split),
            subject.bundle.grammar,
            subject.bundle.vision_fingerprint,
            subject.limit,
        )
        tally = score_documents(subject.bundle, documents, subject.batch_size, self.rows)
        return Result(tally.metrics(), {"by_task_and_class": tally.table()})


def _ways_of_a_batch() -> int:
    """Into how many parts the active mesh cuts the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else sharding.mesh_axes("batch")
    return math.prod(mesh.shape[axis] for axis in axes)


def score_documents(
    bundle: Bundle,
    documents: Mapping[Hashable, Sequence[sequence.Sequence]],
    batch_size: int,
    row_length: int = 0,
) -> Tally:
    """Scores documents by task, packed into rows (see `token_documents.packed_batches`).

    Under an active mesh batches are as many rows larger as it takes for the mesh to cut them.
    """
    ways = _ways_of_a_batch()
    batch_size = -(-batch_size // ways) * ways
    batches = token_documents.packed_batches(documents, row_length, batch_size)
    return score(bundle.model, bundle.variables, batches, tuple(documents))


def score(
    model: nn.Module, variables: Any, batches: Iterable[Mapping], tasks: Sequence[str]
) -> Tally:
    """Scores batches of the training layout.

    Args:
      model: a Transformer.
      variables: {"params": ...}.
      batches: mappings of [B, S] arrays inputs, targets, classes (of targets), sources (index into
        `tasks`), segment_ids (0: padding) and positions, as `emu3_jax.data.pipeline` makes them.
      tasks: names of the sources.

    Returns:
      The Tally over all batches.
    """
    tally = Tally(tasks)
    scorer = _scorer(model)
    for batch in batches:
        arrays = [batch[k] for k in ("inputs", "targets", "positions", "segment_ids")]
        nll_BS = np.asarray(scorer(variables, *arrays))
        tally.add(nll_BS, np.asarray(batch["sources"]), np.asarray(batch["classes"]))
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


def _nats(name: str, nll: np.ndarray, count: np.ndarray) -> dict[str, float]:
    """Nothing where nothing was counted."""
    if not count.sum():
        return {}
    nats = float(nll.sum() / count.sum())
    return {f"nats_{name}": nats, f"perplexity_{name}": float(np.exp(nats))}
