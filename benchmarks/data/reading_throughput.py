"""Tokens per second that one host reads from local shards, and the need of one v5p-512 host.

  PYTHONPATH=. python benchmarks/data/reading_throughput.py [--workers=2]

Synthetic records of the released sizes (images of 64 x 64 codes, as from 512 x 512 pixels, with
captions, and texts) are packed into rows of stage 1's 5,120 tokens, in its mixture, as a host of
the pod does with its 16 of the batch's 1,024 rows. The need is chips x peak x MFU over model FLOPs
per token, divided by the number of hosts, which have four chips each. Reading is timed with
processes (`--workers`) by wall clock, and in one thread by CPU time; repeats alternate and medians
are printed.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np

from emu3_jax import vocab
from emu3_jax.data.tokens.mixture import MixtureEntry
from emu3_jax.data.tokens.pipeline import DataConfig, make_iterator
from emu3_jax.data.tokens.records import (
    Counts,
    DatasetInfo,
    Record,
    Shard,
    ShardWriter,
    write_dataset_info,
)
from emu3_jax.models.language.transformer import released
from emu3_jax.sequence import Document, Grammar, Image, Text
from emu3_jax.text import ByteTokenizer
from emu3_jax.train.run.metrics import PEAK_FLOPS

LENGTH, ROWS_A_HOST = 5120, 16  # configs/emu3_8b_stage1.py: 1,024 rows over 64 hosts
CHIPS, CHIPS_A_HOST, MFU = 256, 4, 0.6  # v5p-512: the name counts cores, two per chip


def flops_per_token() -> float:
    """Model FLOPs of Emu3-8B at stage 1: 6 per matmul weight, and the causal half of attention."""
    c = released()
    layer = 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads)
    layer += 3 * c.hidden_size * c.intermediate_size
    matmul = c.num_layers * layer + c.hidden_size * c.vocab_size
    return 6.0 * (matmul + LENGTH * c.num_heads * c.head_dim * c.num_layers)


def make_dataset(folder: pathlib.Path, grammar: Grammar, images: int, texts: int) -> None:
    """Random codes and ids; their values do not affect reading."""
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> Text:
        ids = rng.integers(0, grammar.vocab.text_size - 1, rng.integers(low, high))
        return Text("x", ids=ids.astype(np.int32))

    codes = grammar.vocab.codebook_size
    make = {
        "image": lambda: (text(20, 100), Image(rng.integers(0, codes, (64, 64)))),
        "text": lambda: (text(200, 2000),),
    }
    shards, counts = [], {}
    for kind, number in (("image", images), ("text", texts)):
        with ShardWriter(folder / f"{kind}.array_record") as writer:
            total = Counts()
            for i in range(number):
                segments = make[kind]()
                writer.write(Record(f"{kind}{i}", "made up", kind, segments))
                length = grammar.document_length(Document(segments))
                total += Counts(1, length, length, length)
        shards.append(Shard(writer.path.name, kind, number))
        counts[kind] = total
    fingerprints = (grammar.tokenizer.fingerprint, "none", grammar.video_format)
    write_dataset_info(folder, DatasetInfo(grammar.vocab, *fingerprints, tuple(shards), counts))


def rate(dataset: str, grammar: Grammar, windows: int, workers: int) -> float:
    """Tokens per second (wall clock) with worker processes, per CPU second without."""
    tasks = {"text_to_image": 0.4, "image_to_text": 0.4, "text": 0.2}  # the mixture of stage 1
    entries = tuple(MixtureEntry(dataset, name, weight=share) for name, share in tasks.items())
    config = DataConfig(entries, ROWS_A_HOST, LENGTH, workers=workers)
    iterator = make_iterator(config, grammar)
    # Rows are packed one window at a time and arrive in bursts of batches: only whole bursts count.
    for _ in range(config.pack_window):
        next(iterator)
    clock = time.perf_counter if workers else time.process_time
    start = clock()
    for _ in range(windows * config.pack_window):
        next(iterator)
    spent = clock() - start
    iterator.close()
    return windows * config.pack_window * ROWS_A_HOST * LENGTH / spent


def main() -> None:
    """Makes the data, measures, compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    grammar = Grammar(vocab.released(), ByteTokenizer())
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(pathlib.Path(folder), grammar, arguments.pictures, arguments.pictures)
        found = {0: [], arguments.workers: []}
        for _ in range(arguments.repeats):
            for workers, rates in found.items():
                rates.append(rate(folder, grammar, arguments.windows, workers))
    flops, hosts = flops_per_token(), CHIPS // CHIPS_A_HOST
    step = CHIPS * PEAK_FLOPS["TPU v5p"] * MFU / flops
    print(f"model FLOPs per token at {LENGTH:,}:     {flops:.3e}")
    print(
        f"a v5p-512 step at {MFU:.0%} MFU needs:  {step:,.0f} tokens/s, "
        f"{step / hosts:,.0f} per host"
    )
    for workers, rates in found.items():
        how = f"{workers} processes, tokens/s" if workers else "one thread, tokens/CPU-s"
        median = statistics.median(rates)
        print(f"read, {how:26s} {median:12,.0f}  {median * hosts / step:6.1f} x the need")


if __name__ == "__main__":
    main()
