"""Small records, and datasets of them."""

import numpy as np

from emu3_jax import vocab
from emu3_jax.data.tokens.records import (
    Counts,
    DatasetInfo,
    Record,
    Shard,
    ShardWriter,
    write_dataset_info,
)
from emu3_jax.sequence import Grammar, Image, Text
from emu3_jax.text import ByteTokenizer

TOKENIZER = ByteTokenizer()


GRAMMAR = Grammar(vocab.small(TOKENIZER.size, 100), TOKENIZER)


def text(content, loss=True):
    return Text(content, loss, ids=np.array(TOKENIZER.encode(content), np.int32))


def image_record(i=0):
    codes = np.random.default_rng(i).integers(0, 100, (3, 4))
    return Record(f"k{i}", "test", "image", (text(f"número {i} 雪"), Image(codes)), {"tone": None})


def write_dataset(path, records, grammar=GRAMMAR, **changes):
    """A dataset of one shard per kind."""
    shards, counts = [], {}
    for kind in dict.fromkeys(record.kind for record in records):
        chosen = [record for record in records if record.kind == kind]
        with ShardWriter(path / f"{kind}.array_record") as writer:
            for record in chosen:
                writer.write(record)
        shards.append(Shard(f"{kind}.array_record", kind, len(chosen)))
        counts[kind] = Counts(len(chosen), 10, 5, 10)
    fields = {
        "vocabulary": grammar.vocab,
        "text_tokenizer": grammar.tokenizer.fingerprint,
        "vision_tokenizer": "v1",
        "video_format": grammar.video_format,
        "shards": tuple(shards),
        "counts": counts,
    }
    write_dataset_info(path, DatasetInfo(**(fields | changes)))
    return path
