"""Trains a text tokenizer on a text file or on fields of a JSON-lines file.

python -m emu3_jax.text.train --input=captions.jsonl --field=caption,tags --output=text.model
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

from absl import flags

from emu3_jax import command_line
from emu3_jax.text import sentencepiece

_INPUT = flags.DEFINE_string(
    "input",
    None,
    "A .jsonl file (see --field), or a text file with one sentence per line.",
    required=True,
)
_FIELD = flags.DEFINE_list(
    "field", ["text"], "Keys of the .jsonl file to train on; each has a text or a list of texts."
)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, *.model.", required=True)
_SIZE = flags.DEFINE_integer("size", 1024, "Number of text ids; at most what the texts allow.")


def read_sentences(path: str | pathlib.Path, fields: list[str]) -> Iterator[str]:
    """Lines of a text file, or the texts under `fields` in each line of a .jsonl file.

    A list of texts is joined by ", ". A line may lack a field or have null there. Raises
    ValueError, naming file and line, for invalid JSON, other values, and fields that no line has.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no input file {path}.")
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: expected UTF-8 text.") from None
            if path.suffix != ".jsonl":
                yield line
            elif line.strip():
                yield from _texts(line, fields, seen, f"{path}, line {number}")
    missing = [field for field in fields if field not in seen]
    if path.suffix == ".jsonl" and missing:
        raise ValueError(f"No line of {path} has the key {missing[0]!r} with a text.")


def _texts(line: str, fields: list[str], seen: set[str], where: str) -> Iterator[str]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError:
        item = None
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected a JSON object.")
    for field in fields:
        value = item.get(field)
        if value is None:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: the key {field!r} has neither a text nor texts.")
        seen.add(field)
        yield ", ".join(texts)


def main() -> None:
    """Reads the sentences, trains the model, writes it."""
    if not _OUTPUT.value.endswith(".model"):
        raise ValueError(f"--output is {_OUTPUT.value}, expected a file name ending in .model.")
    sentences = list(read_sentences(_INPUT.value, _FIELD.value))
    size = sentencepiece.train(sentences, _SIZE.value, _OUTPUT.value)
    if size < _SIZE.value:
        print(
            f"--size={_SIZE.value} is more than these texts allow; {size} is the largest possible"
        )
    tokenizer = sentencepiece.SentencePieceTokenizer(_OUTPUT.value)
    tokens = sum(len(tokenizer.encode(sentence)) for sentence in sentences)
    print(
        f"{_OUTPUT.value}: {tokenizer.size} pieces, {tokens / max(1, len(sentences)):.1f} tokens "
        f"per sentence over {len(sentences)} sentences, fingerprint {tokenizer.fingerprint}"
    )


if __name__ == "__main__":
    command_line.run(main, __doc__)
