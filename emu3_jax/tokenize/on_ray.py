"""Tokenize a corpus on a Ray cluster, with the same bytes as `python -m emu3_jax.tokenize`.

  pip install -r requirements-ray.txt
  python -m emu3_jax.tokenize.on_ray --config=FILE --config.output=FOLDER --workers=64 --gpus=1

Ray Data distributes the shards over a pool of workers; each worker loads the vision tokenizer once.
A worker that dies is replaced and its shard is redone. A command that dies can be run again and
keeps the finished shards. Corpus and output must be on a file system that all machines share, and
each machine needs this code at the same path or receives it with the job
(`ray job submit --working-dir=.`). One machine needs no cluster.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from emu3_jax import command_line
from emu3_jax.files import in_words
from emu3_jax.foreign import optional
from emu3_jax.tokenize.run import SplitJob, TokenizeError, open_splits
from emu3_jax.tokenize.shard_results import ShardResult
from emu3_jax.tokenize.tokenize_config import TokenizeConfig

WORKERS = flags.DEFINE_integer(
    "workers", 1, "Maximum number of workers; fewer while the cluster is smaller."
)
CPUS = flags.DEFINE_float("cpus", 2, "CPU cores per worker.")
GPUS = flags.DEFINE_float("gpus", 0, "GPUs per worker.")
TPUS = flags.DEFINE_float("tpus", 0, "TPU chips per worker: all of a host.")


class ShardWorker:
    """A process of the pool: opens corpus and tokenizers once, then makes the shards it receives.

    Problems are returned as results: an exception would only end the process, and Ray would try
    again elsewhere.
    """

    def __init__(self, config: TokenizeConfig, split: str):
        self.config, self.split, self.job = config, split, None

    def __call__(self, row: dict) -> dict:
        """{"index": of a raw shard} -> {"result": `ShardResult` as bytes, "problem": "" or why}."""
        try:
            self.job = self.job or self.open()
            return {"result": self.job.make(int(row["index"])).to_bytes(), "problem": ""}
        except (ValueError, OSError) as error:
            return {"result": b"", "problem": in_words(error)}

    def open(self) -> SplitJob:
        """Raises TokenizeError if the command uses another folder or other tokenizers."""
        job = open_splits(self.config)[self.split]
        if not job.finished() and job.progress.plan() is None:
            raise TokenizeError(
                f"{job.folder}: a worker does not find the files of the command there; output must "
                "be on a file system that all machines share"
            )
        return job


def tokenize_on_ray(
    config: TokenizeConfig, workers: int, cpus: float = 2, gpus: float = 0, tpus: float = 0
) -> list[Path]:
    """As `tokenize`, on a pool of up to `workers` processes; returns the folders.

    Raises the errors of `tokenize`.
    """
    ray, _ = (  # ray.data needs more than ray
        optional(name, "emu3_jax.tokenize.on_ray", "-r requirements-ray.txt")
        for name in ("ray", "ray.data")
    )
    if workers < 1 or min(cpus, gpus, tpus) < 0:
        raise ValueError(
            f"workers must be at least 1, cpus, gpus and tpus at least 0; got {workers}"
        )
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=workers)

    def one_split(job: SplitJob) -> Path:
        def make(todo: list[int], item_done: Callable[[], None]) -> Iterator[ShardResult]:
            del item_done  # items are counted with their shard
            if not todo:
                return
            rows = ray.data.from_items([{"index": i} for i in todo], override_num_blocks=len(todo))
            results = rows.map(
                ShardWorker,
                fn_constructor_args=(config, job.split),
                compute=pool,
                num_cpus=cpus,
                num_gpus=gpus or None,
                resources={"TPU": tpus} if tpus else None,
            )
            for row in results.iter_rows():
                if row["problem"]:
                    raise TokenizeError(row["problem"])
                yield ShardResult.from_bytes(row["result"])

        return job.fill(range(len(job.maker)), make)

    return [one_split(job) for job in open_splits(config).values()]


def _main(config: TokenizeConfig) -> None:
    tokenize_on_ray(config, WORKERS.value, CPUS.value, GPUS.value, TPUS.value)


if __name__ == "__main__":
    command_line.run_config(_main, TokenizeConfig, __doc__, "tokenize_nano")
