"""Log-probabilities of answers under fixed weights, computed once and kept in a file.

The file (npz) has a number for each answer, by a key of its tokens, and states the weights.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from emu3_jax.data.tokens.preference_batches import FIELDS, Answer, Pairs, row_of
from emu3_jax.files import in_words, write_atomically
from emu3_jax.train.run.distributed import gather, is_first, say

# Batches between two writes of the file: an interrupted computation goes on from the last one.
WRITE_EVERY = 100


def read(path: str | os.PathLike, weights: str, where: str) -> dict[str, float]:
    """Returns key → log-probability of what is stored; {} if there is no file.

    Args:
      path: the file.
      weights: name of the weights that are expected.
      where: what the message calls them.

    Raises:
      ValueError: it is of other weights, or no such file.
    """
    path = epath.Path(path)
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            theirs = str(stored["weights"])
            keys, values = stored["keys"].tolist(), stored["values"].tolist()
        found = dict(zip(keys, values, strict=True))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as log-probabilities of a reference ({in_words(error)}); "
            "delete it to compute them again"
        ) from error
    if theirs != weights:
        raise ValueError(
            f"{path} holds log-probabilities of a reference of the weights {theirs}, but {where} "
            f"holds {weights}; name another file in start.log_probabilities, or those weights in "
            "start.reference"
        )
    return found


def write(path: str | os.PathLike, weights: str, values: dict[str, float]) -> None:
    """Writes the file, atomically."""
    content = io.BytesIO()
    arrays = {"keys": np.array([*values]), "values": np.array([*values.values()], np.float64)}
    np.savez(content, weights=np.array(weights), **arrays)
    write_atomically(path, content.getvalue())


def complete(
    path: str | os.PathLike,
    weights: str,
    where: str,
    pairs: Pairs,
    score: Callable[[dict[str, np.ndarray]], np.ndarray],
    shape: tuple[int, int],
    pad: int,
) -> dict[str, float]:
    """Returns key → log-probability of all answers of the pairs; those missing are computed.

    Where a share of the captions is left empty, an answer counts with and without its caption. All
    processes must call this; the first one writes.

    Args:
      path, weights, where: as in `read`.
      pairs: whose answers.
      score: arrays [pairs, 2, length] as in a batch → log-probabilities of the same shape; the
        same arrays in every process.
      shape: (pairs, length) of those arrays.
      pad: the padding id.
    """
    values = gather(read(path, weights, where))[0]  # another process may not see the file yet
    missing = [answer for answer in _answers(pairs) if answer.key not in values]
    if not missing:
        return values
    say(f"{len(missing)} log-probabilities of the reference are computed into {path}")
    rows, length = 2 * shape[0], shape[1]
    for number, start in enumerate(range(0, len(missing), rows), 1):
        some = missing[start : start + rows]
        arrays = _batch([*some, *[some[0]] * (rows - len(some))], length, pad)
        scores = score({name: a.reshape(-1, 2, length) for name, a in arrays.items()})
        sums = np.where(arrays["counted"] > 0, scores.reshape(rows, length), 0).sum(-1, np.float64)
        values |= {answer.key: float(x) for answer, x in zip(some, sums, strict=False)}
        if is_first() and (number % WRITE_EVERY == 0 or start + rows >= len(missing)):
            write(path, weights, values)
    return values


def _answers(pairs: Pairs) -> Iterator[Answer]:
    """Every answer that training may read, once."""
    known = set()
    for index in range(len(pairs)):
        for null_prompt in (False, True) if pairs.null_prompt(index) else (False,):
            for answer in pairs.answers(index, null_prompt):
                if answer.key not in known:
                    known.add(answer.key)
                    yield answer


def _batch(answers: Sequence[Answer], length: int, pad: int) -> dict[str, np.ndarray]:
    rows = [row_of(answer, length, pad) for answer in answers]
    return {name: np.stack([row[name] for row in rows]) for name in FIELDS}
