"""How well the model predicts held-out documents: nats a token, by kind of token and by task.

Every figure is (sum of negative log-likelihoods) / (number of targets) over the whole split.
"""

import dataclasses

import numpy as np

from emu3_jax.evaluate import token_documents
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.generate.scoring import Tally, score_documents
from emu3_jax.sequence import TokenClass

CLASSES = (TokenClass.TEXT, TokenClass.IMAGE, TokenClass.VIDEO, TokenClass.STRUCTURE)


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
        targets = sum(len(one) - 1 for group in documents.values() for one in group)
        done = subject.progress.counter("targets scored", targets)
        tally = score_documents(subject.bundle, documents, subject.batch_size, self.rows, done=done)
        return Result(metrics(tally), {"by_task_and_class": table(tally)})


def metrics(tally: Tally) -> dict[str, float]:
    """Nats and perplexity of each class and of all targets, then task by task.

    Names: nats_<class>, nats_all; nats_<task>_on_<class>, nats_<task>_on_all; perplexity
    likewise where it is of everything or of one class.
    """
    found = {}
    for c in CLASSES:
        found |= _nats(c.name.lower(), tally.nll[:, c], tally.count[:, c])
    found |= _nats("all", tally.nll, tally.count)
    for i, task in enumerate(tally.tasks):
        for c in CLASSES:
            part = _nats(f"{task}_on_{c.name.lower()}", tally.nll[i, c], tally.count[i, c])
            found |= {name: v for name, v in part.items() if name.startswith("nats")}
        found |= _nats(f"{task}_on_all", tally.nll[i], tally.count[i])
    return found | {"targets": int(tally.count.sum())}


def table(tally: Tally) -> Table:
    """One row for each task and class that occur together."""
    rows = [
        (task, c.name.lower(), round(tally.nll[i, c] / tally.count[i, c], 5), tally.count[i, c])
        for i, task in enumerate(tally.tasks)
        for c in CLASSES
        if tally.count[i, c]
    ]
    rows = [(task, kind, float(nats), int(count)) for task, kind, nats, count in rows]
    return Table(("task", "tokens", "nats", "targets"), tuple(rows))


def _nats(name: str, nll: np.ndarray, count: np.ndarray) -> dict[str, float]:
    """Nothing where nothing was counted."""
    if not count.sum():
        return {}
    nats = float(nll.sum() / count.sum())
    return {f"nats_{name}": nats, f"perplexity_{name}": float(np.exp(nats))}
