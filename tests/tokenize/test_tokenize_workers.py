"""Workers that share an output: races at the start and at the end, and conflicts of plans."""

import json
import multiprocessing
import os
import pathlib
import signal

import pytest

from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.tokenize.run import TokenizeError, tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

ROUNDS = 60


def config(corpus, output, **changes):
    fields = {"output": str(output), "splits": {"train": ["train.jsonl"]}, "corpus": str(corpus)}
    return TokenizeConfig(**(fields | {"items_per_shard": 1} | changes))


@pytest.fixture
def corpus(tmp_path):
    """Three rows of text, which make three shards."""
    rows = [json.dumps({"id": f"t{i}", "text": f"text {i}"}) + "\n" for i in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    return tmp_path


def check_complete(folder):
    """The dataset holds all rows, and the folder holds nothing else."""
    dataset = open_dataset(folder)
    assert [record.key for record in dataset.records("text")] == ["t0", "t1", "t2"]
    names = {shard.file for shard in dataset.info.shards} | {"dataset.json", "skipped.jsonl"}
    assert {file.name for file in folder.iterdir()} == names


@pytest.mark.parametrize("copies, other", [(3, 1), (1, 3)])
def test_another_number_of_copies_is_another_dataset(copies, other, corpus):
    def once(number):
        tokenize(config(corpus, corpus / "out", copies={"train": number}, max_shift=2))

    once(copies)
    once(copies)
    wanted = f"made with copies {'3' if copies == 3 else 'not set'}, the config has "
    with pytest.raises(TokenizeError, match=wanted + ("3" if other == 3 else "not set")):
        once(other)


def test_a_worker_whose_progress_files_vanish_leaves_the_dataset_alone(corpus, monkeypatch):
    first, second = (config(corpus, corpus / "out", workers=2, worker=i) for i in (0, 1))
    tokenize(first)  # shards 0 and 2
    progress = corpus / "out" / "train" / "progress"
    opened, interrupted = pathlib.Path.open, []

    def slow_open(self, *arguments, **options):
        stream = opened(self, *arguments, **options)
        # While the second worker counts the results, the first finishes and removes them all.
        if self == progress / "00000.json" and (progress / "00001.json").exists():
            if not interrupted:
                interrupted.append(self)
                tokenize(first)
        return stream

    monkeypatch.setattr(pathlib.Path, "open", slow_open)
    tokenize(second)
    assert interrupted
    check_complete(corpus / "out" / "train")


def test_a_worker_that_starts_while_another_finishes_does_nothing_again(corpus, monkeypatch):
    from emu3_jax.tokenize import run, shard

    made, begun = [], []

    class Counting(shard.ShardWriter):
        def __init__(self, path):
            made.append(path)
            super().__init__(path)

    decide = run.SplitJob.finished

    def late(self):
        finished = decide(self)
        if not begun:  # between this worker's first look and its first step
            begun.append(self)
            tokenize(config(corpus, corpus / "out"))
        return finished

    monkeypatch.setattr(shard, "ShardWriter", Counting)
    monkeypatch.setattr(run.SplitJob, "finished", late)
    tokenize(config(corpus, corpus / "out"))
    assert len(made) == 3
    check_complete(corpus / "out" / "train")


def test_a_worker_whose_temporary_file_vanishes_leaves_the_dataset_alone(corpus, monkeypatch):
    rename, nested = os.replace, []

    def slow_replace(source, target):
        # Both workers found all shards done: the first is ready before this one writes its copy.
        if os.path.basename(target) == "dataset.json" and not nested:
            nested.append(source)
            tokenize(config(corpus, corpus / "out"))
        rename(source, target)

    monkeypatch.setattr(os, "replace", slow_replace)
    tokenize(config(corpus, corpus / "out"))
    assert nested
    check_complete(corpus / "out" / "train")


def test_a_listed_file_that_is_lost_is_made_again(corpus):
    folder = tokenize(config(corpus, corpus / "out"))[0]
    before = (folder / "dataset.json").read_bytes()
    (folder / "text-00001-of-00003.array_record").unlink()
    tokenize(config(corpus, corpus / "out"))
    check_complete(folder)
    assert (folder / "dataset.json").read_bytes() == before


def _work(worker, corpus, together, errors):
    """One worker in its own process: every round starts when the other one is ready."""
    for number in range(ROUNDS):
        together.wait()
        try:
            tokenize(config(corpus, corpus / str(number), workers=2, worker=worker))
        except Exception as error:
            errors.put(f"round {number}, worker {worker}: {error!r}")


def test_processes_that_start_and_end_together(corpus):
    spawn = multiprocessing.get_context("spawn")
    together, errors = spawn.Barrier(2, timeout=1800), spawn.SimpleQueue()
    workers = [spawn.Process(target=_work, args=(i, corpus, together, errors)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors.empty(), errors.get()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for number in range(ROUNDS):
        check_complete(corpus / str(number) / "train")


def _work_until_killed(worker, corpus, output, where):
    """One of three workers, killed while it writes shard `where` or before it marks it finished."""
    from emu3_jax.tokenize import run, shard

    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    class Writer(shard.ShardWriter):
        def write(self, record):
            super().write(record)
            if f"-{where:05d}-of-" in self.path.name:
                die()

    if worker == 0:
        shard.ShardWriter = Writer
    else:
        run.ShardResults.store = die
    tokenize(config(corpus, output, workers=3, worker=worker))


def test_killed_workers_and_another_number_of_them_change_no_byte(tmp_path):
    rows = [json.dumps({"id": f"t{i}", "text": f"text {i}"}) + "\n" for i in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    once = tokenize(config(tmp_path, tmp_path / "once"))[0]
    spawn = multiprocessing.get_context("spawn")
    out = tmp_path / "out"
    for worker in (0, 1):
        process = spawn.Process(target=_work_until_killed, args=(worker, tmp_path, out, 3))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    left = {file.name for file in (out / "train").iterdir()}
    assert any(name.endswith(".tmp") for name in left), "shard 3 was not being written"
    assert "text-00001-of-00009.array_record" in left  # written, but not marked finished
    assert {file.stem for file in (out / "train/progress").glob("0*")} == {"00000"}
    for worker in (1, 0):
        (folder,) = tokenize(config(tmp_path, out, workers=2, worker=worker))
    files = [{file.name: file.read_bytes() for file in one.iterdir()} for one in (folder, once)]
    assert files[0] == files[1]
