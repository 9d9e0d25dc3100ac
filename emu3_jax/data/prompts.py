"""Prompts to draw for: lines of a text, rows of a file, or the captions of a token dataset."""

import os
from pathlib import Path
from typing import NamedTuple

from emu3_jax.data.evenly import evenly_chosen
from emu3_jax.data.sources.caption_values import CAPTION_KEYS, caption_of
from emu3_jax.data.sources.row_files import open_rows
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.files import in_words

PROMPT_KEYS = ("prompt", *CAPTION_KEYS)


class Prompt(NamedTuple):
    """A prompt, the key of its pairs, and where it stands."""

    key: str
    text: str
    where: str


def read_prompts(path: str | os.PathLike, limit: int = 0) -> list[Prompt]:
    """The prompts of a file or a dataset in order, equal ones once.

    Args:
      path: see `PreferencesConfig.prompts`.
      limit: so many of them, at even distances; 0 for all.

    Raises:
      ValueError: it cannot be read, has no prompt, or a row has none; names the file and the row.
    """
    path = Path(path)
    if path.is_dir():
        found = _captions(path)
    elif path.suffix == ".txt":
        found = _lines(path)
    else:
        found = _rows(path)
    once = {}
    for prompt in found:
        once.setdefault(prompt.text, prompt)
    if not once:
        raise ValueError(f"{path}: holds no prompt")
    return evenly_chosen(list(once.values()), limit or len(once))


def _lines(path: Path) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({in_words(error)})") from error
    numbered = enumerate(lines, 1)
    return [Prompt(str(i), line, f"{path}:{i}") for i, line in numbered if line.strip()]


def _rows(path: Path) -> list[Prompt]:
    rows = open_rows(path, rows_per_shard=1024)
    found = []
    for number, row in enumerate(r for i in range(rows.num_shards) for r in rows.rows(i)):
        if row.problem or not isinstance(row.value, dict):
            raise ValueError(f"{row.where}: {row.problem or 'expected an object with a prompt'}")
        if not (text := caption_of(row.value, PROMPT_KEYS)):
            raise ValueError(f"{row.where}: expected a prompt under {', '.join(PROMPT_KEYS)}")
        found.append(Prompt(str(row.value.get("id", number)), text, row.where))
    return found


def _captions(path: Path) -> list[Prompt]:
    records = open_dataset(path).records("image")
    captions = ((record.key, record.segments[0].text) for record in records)
    return [Prompt(key, text, f"{path}, {key}") for key, text in captions if text.strip()]
