"""Likelihood of held-out documents: nats per token, by class of token and by task.

Each figure is (sum of negative log-likelihoods) / (number of targets) over all documents. Those
longer than the model's context are cut or dropped as in training, and counted.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from etils import epath

from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.evaluate.evaluator import Result, SplitEvaluator, Subject, Table
from emu3_jax.evaluate.language.token_documents import dataset_paths, documents_by_task
from emu3_jax.generate.scoring import Fitted, Tally, fit, score
from emu3_jax.interop.bundle import Bundle, Language
from emu3_jax.sequence import TokenClass

CLASSES = (TokenClass.TEXT, TokenClass.IMAGE, TokenClass.VIDEO, TokenClass.STRUCTURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(SplitEvaluator):
    """Nats per token and perplexity on every task that the documents of the splits allow.

    Attributes:
      tokens: a token dataset, or a folder of them, one per split; may be in a bucket (gs://).
      rows: tokens per row into which documents are packed. A document longer than this, or than
        the model's context, is cut or dropped. 0 for what the longest one needs.
    """

    measures: ClassVar[str] = "language_model"
    headline: ClassVar[tuple[str, ...]] = ("*_all",)

    name: str = "likelihood"
    tokens: str = ""
    rows: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.at_least(rows=0)

    def check(self, language: Language) -> None:
        """Opens the datasets; checks that vocabulary and vision tokenizer are the model's."""

        def open_all(tokens: str) -> None:
            for path in dataset_paths(tokens, self.splits):
                open_dataset(path, language.grammar, language.vision_fingerprint)

        self.use("tokens", open_all)

    def run(self, subject: Subject) -> Result:
        """Scores every document of the splits."""
        bundle = subject.language_model
        documents = self._documents(self.use("tokens", epath.Path), bundle)
        fitted = fit(documents, bundle.max_context, self.rows)
        done = subject.progress.counter("targets scored", fitted.targets)
        tally = score(bundle, fitted, self.batch_size, done)
        counts = {"documents_cut": fitted.cut, "documents_dropped": fitted.dropped}
        tables = {"by_task_and_class": table(tally)}
        return Result(metrics(tally) | counts, tables, notes=notes(fitted))

    def _documents(self, tokens: epath.Path, bundle: Bundle) -> dict[str, list]:
        """Returns task → sequences of all splits."""
        found: dict[str, list] = {}
        for path in dataset_paths(tokens, self.splits):
            of_split = documents_by_task(
                path, bundle.grammar, bundle.vision_fingerprint, self.limit
            )
            for task, sequences in of_split.items():
                found.setdefault(task, []).extend(sequences)
        return found


def notes(fitted: Fitted) -> list[str]:
    """Returns a sentence if documents did not fit into the model's context."""
    if not fitted.cut + fitted.dropped:
        return []
    return [
        f"documents longer than the context: {fitted.cut} cut as in training, {fitted.dropped} "
        "left out"
    ]


def metrics(tally: Tally) -> dict[str, float]:
    """Returns nats and perplexity of each class and of all targets, and nats of each task.

    Names: nats_<class>, nats_all; perplexity_<class>, perplexity_all; nats_<task>_on_<class>,
    nats_<task>_on_all, perplexity_<task>_on_all.
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
    """Returns a table with one row for each task and class that occur together."""
    rows = [
        (task, c.name.lower(), round(tally.nll[i, c] / tally.count[i, c], 5), tally.count[i, c])
        for i, task in enumerate(tally.tasks)
        for c in CLASSES
        if tally.count[i, c]
    ]
    rows = [(task, kind, float(nats), int(count)) for task, kind, nats, count in rows]
    return Table(("task", "tokens", "nats", "targets"), tuple(rows))


def _nats(name: str, nll: np.ndarray, count: np.ndarray) -> dict[str, float]:
    """Returns the two metrics of one group of targets; {} if it has no targets."""
    if not count.sum():
        return {}
    nats = float(nll.sum() / count.sum())
    return {f"nats_{name}": nats, f"perplexity_{name}": float(np.exp(nats))}
