"""Ray distributes shards: the dataset equals that of one process, even if a worker is killed."""

import json
import os
import pathlib
import signal
import sys

import pytest

from emu3_jax.tokenize import on_ray, shard
from emu3_jax.tokenize.run import tokenize
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

ray = pytest.importorskip("ray", reason="needs requirements-ray.txt")
SHARDS = 6


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    # The processes of the pool cannot import a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


def config(corpus, output, **changes):
    rows = [json.dumps({"id": f"t{i}", "text": f"text {i}"}) + "\n" for i in range(2 * SHARDS)]
    (corpus / "train.jsonl").write_text("".join(rows))
    fields = {"output": str(output), "splits": {"train": ["train.jsonl"]}, "corpus": str(corpus)}
    return TokenizeConfig(**(fields | {"items_per_shard": 2} | changes))


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


class Killed(on_ray.ShardWorker):
    """A worker that is killed while it writes shard 3, on the first attempt."""

    def __call__(self, row):
        killed = pathlib.Path(self.config.output) / "killed"

        class Writer(shard.ShardWriter):
            def write(self, record):
                super().write(record)
                if "-00003-of-" in self.path.name and not killed.exists():
                    killed.write_text(str(os.getpid()))
                    os.kill(os.getpid(), signal.SIGKILL)

        whole, shard.ShardWriter = shard.ShardWriter, Writer
        try:
            return super().__call__(row)
        finally:
            shard.ShardWriter = whole


def test_a_killed_worker_changes_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "ShardWorker", Killed)
    once = tokenize(config(tmp_path, tmp_path / "once"))[0]
    (folder,) = on_ray.tokenize_on_ray(config(tmp_path, tmp_path / "out"), workers=2, cpus=1)
    assert (tmp_path / "out" / "killed").exists()
    assert content(folder) == content(once)


def test_what_another_command_began_is_finished(tmp_path):
    once = tokenize(config(tmp_path, tmp_path / "once"))[0]
    tokenize(config(tmp_path, tmp_path / "out", workers=3, worker=1))
    first = tmp_path / "out" / "train" / "text-00001-of-00006.array_record"
    made = first.stat().st_mtime_ns
    (folder,) = on_ray.tokenize_on_ray(config(tmp_path, tmp_path / "out"), workers=1, cpus=1)
    assert content(folder) == content(once) and first.stat().st_mtime_ns == made


def test_a_worker_that_does_not_see_the_output_says_so(tmp_path):
    settings = config(tmp_path, tmp_path / "elsewhere")
    answer = on_ray.ShardWorker(settings, "train")({"index": 0})
    assert "must be on a file system that all machines share" in answer["problem"]
    assert not (tmp_path / "elsewhere").exists()
