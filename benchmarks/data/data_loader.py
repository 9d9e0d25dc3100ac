r"""Tokens per second of the data loader alone, in one thread of one process.

  PYTHONPATH=. python benchmarks/data/data_loader.py  # a synthetic corpus of the nano model's sizes
  PYTHONPATH=. python benchmarks/data/data_loader.py --dataset=runs/tokens_nano/train \
    --text=assets/text_nano.model

Prints tokens/s by wall clock and by CPU time (compare the latter on a busy machine), the filled
share of each row, and the time to the first batch.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from emu3_jax import vocab
from emu3_jax.data.tokens.mixture import DOCUMENT_TASKS, MixtureEntry
from emu3_jax.data.tokens.pipeline import DataConfig, make_iterator
from emu3_jax.data.tokens.records import (
    Counts,
    DatasetInfo,
    Record,
    Shard,
    ShardWriter,
    open_dataset,
    write_dataset_info,
)
from emu3_jax.sequence import Document, Grammar, Image, Text, Video
from emu3_jax.text import load_text_tokenizer

CODES = 2048


def made_up_dataset(folder: pathlib.Path, grammar: Grammar) -> None:
    """2,000 stills of 8 x 8 codes, 500 clips of 4 x 8 x 8 and 2,000 texts, all random."""
    rng = np.random.default_rng(0)

    def text(low, high):
        ids = rng.integers(0, grammar.tokenizer.size, rng.integers(low, high))
        return Text("x", ids=ids.astype(np.int32))

    shards, counts = [], {}
    for kind, number in (("text", 2000), ("image", 2000), ("video", 500)):
        total = Counts()
        with ShardWriter(folder / f"{kind}.array_record") as writer:
            for i in range(number):
                segments = {
                    "text": lambda: (text(20, 60),),
                    "image": lambda: (text(3, 15), Image(rng.integers(0, CODES, (8, 8)))),
                    "video": lambda: (
                        text(3, 15),
                        Video(rng.integers(0, CODES, (4, 8, 8)), 2.6, 3),
                    ),
                }[kind]()
                writer.write(Record(f"{kind}{i}", "made up", kind, segments))
                length = grammar.document_length(Document(segments))
                total += Counts(1, length, length, length)
        shards.append(Shard(f"{kind}.array_record", kind, number))
        counts[kind] = total
    fingerprints = (grammar.tokenizer.fingerprint, "none", grammar.video_format)
    info = DatasetInfo(grammar.vocab, *fingerprints, tuple(shards), counts)
    write_dataset_info(folder, info)


def measure(dataset: str, grammar: Grammar, arguments: argparse.Namespace) -> None:
    """Measures the loader on all tasks that the dataset allows, equally weighted."""
    kinds = open_dataset(dataset).info.counts
    entries = [
        MixtureEntry(str(dataset), name) for name, t in DOCUMENT_TASKS.items() if t.kind in kinds
    ]
    config = DataConfig(tuple(entries), arguments.rows, arguments.length, workers=arguments.workers)
    iterator = make_iterator(config, grammar)
    start = time.perf_counter()
    next(iterator)
    first = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    filled = [np.mean(next(iterator)["segment_ids"] > 0) for _ in range(arguments.batches)]
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    iterator.close()
    tokens = arguments.batches * arguments.rows * arguments.length
    print(f"mixture        {', '.join(config.source_names())}")
    print(
        f"batch          {arguments.rows} rows of {arguments.length}, {arguments.workers} workers"
    )
    print(f"tokens/s       {tokens / wall:,.0f} (wall clock)")
    if not arguments.workers:
        print(f"tokens/CPU-s   {tokens / cpu:,.0f}")
    print(f"rows filled    {np.mean(filled):.1%}")
    print(f"first batch    {first:.2f} s")


def main() -> None:
    """Reads the options, makes the data if none is named, measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a token dataset; default: a synthetic one")
    parser.add_argument("--text", default="bytes", help="the dataset's text tokenizer")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = load_text_tokenizer(arguments.text)
    if arguments.dataset:
        layout = open_dataset(arguments.dataset).info.vocabulary
        measure(arguments.dataset, Grammar(layout, tokenizer), arguments)
        return
    grammar = Grammar(vocab.small(tokenizer.size, CODES), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        made_up_dataset(pathlib.Path(folder), grammar)
        measure(folder, grammar, arguments)


if __name__ == "__main__":
    main()
