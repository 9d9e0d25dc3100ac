"""Chats and documents in the layouts of other projects: LLaVA, LLaVA-OneVision, Lumina, …."""

import glob
from pathlib import Path

from emu3_jax.data.sources.layouts import edit, interleaved, llava, lumina, onevision
from emu3_jax.data.sources.layouts.row_source import Reader, RowSource, Table
from emu3_jax.data.sources.layouts.rows import open_rows
from emu3_jax.data.sources.source import SourceError

# What a source's string begins with, and how a row of its file is read.
READERS: dict[str, Reader] = {
    "llava": llava.reader(llava.llava_1_5),
    "llava_next": llava.reader(llava.llava_next),
    "onevision": llava.reader(llava.llava_next),
    "lumina": lumina.read,
    "edit": edit.read,
    "interleaved": interleaved.read,
}


def open_layout(kind: str, files: str, root: Path, items_per_shard: int) -> RowSource:
    """The rows of json, jsonl or parquet files, or of mixtures of them, by the reader `kind`.

    Args:
      kind: one of READERS.
      files: a file or a glob, relative to `root`. "#FOLDER" behind it names the folder, relative to
        `root`, to which paths of media are relative; without it that is the file's own.
      root: a folder.
      items_per_shard: rows per shard.

    Raises:
      SourceError: no file matches, or one is no list of rows.
    """
    pattern, _, folder = files.partition("#")
    paths = [Path(path) for path in sorted(glob.glob(str(root / pattern)))]
    if not paths:
        raise SourceError(f"{root / pattern}: does not exist")
    tables: list[Table] = []
    for path in paths:
        media = root / folder if folder else path.parent
        if kind == "onevision":
            tables += onevision.open_tables(path, media)
        else:
            rows = open_rows(path)
            tables.append(Table(rows, range(len(rows)), media))
    return RowSource(paths[0].stem, tables, READERS[kind], items_per_shard)
