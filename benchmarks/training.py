"""Training a language model on the CPU, compared with the same in torch.

  PYTHONPATH=. python benchmarks/training.py [--torch_python=python] [--repeats=7] [--huge_pages]

`--torch_python` is the Python of an environment with torch and safetensors.

Two models, float32. The first has 66 million parameters and reads 2 rows of 1,024 tokens per step;
torch's side (torch_peer/torch_language.py) has the same weights, fused attention and fused AdamW.
The losses of the first steps must agree. The second is the model, batch and dropout of
configs/transformer_nano.py, rows of 352 tokens. One step is forward, backward, clipping and AdamW;
this package trains as `python -m emu3_jax.train` does, and also reports losses by kind of token and
checks for steps to reject.

Of this package two programs are timed: the one that it chooses on a CPU, and the `general` one, as
for an accelerator without a kernel of its own: attention as one score matrix, gradients of kernels
as JAX has them. Tokens are random; a row of the second model has four documents.

Each side is a process on the same two cores; they alternate, one step each, while the others wait.
Prints medians and the fastest steps (other programs disturb both sides, but not equally), and
finally the ratios of both. With `--huge_pages` all processes allocate in pages of
2 MiB (GLIBC_TUNABLES=glibc.malloc.hugetlb=1): XLA frees its memory after every step, and the system
clears it page by page before the next.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
import types

from benchmarks.torch_peer.processes import CORES, Process, has_torch, run_side

MODEL = dict(
    vocab_size=40_960,
    hidden_size=512,
    intermediate_size=1408,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    dropout=0.0,
)
NANO_VOCAB = 3080  # that of assets/transformer_nano
PROGRAMS = ("cpu", "general")  # of this package
WAYS = ("eager", "compiled")  # of torch
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
CHECKED = 3  # steps whose losses are compared; they also warm up
# First step: float32 through eight layers. Later steps: Adam's first updates have full size however
# small the gradient, which amplifies rounding.
TOLERANCES = 1e-5, 1e-3


class Ours:
    """The side of this package: every case as the command `train` runs it."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.runs = folder, {}

    def prepare(self, case: str, program: str) -> int:
        """Number of trained parameters."""
        import jax

        from emu3_jax import sharding
        from emu3_jax.models import cpu
        from emu3_jax.train import step as training
        from emu3_jax.train.tasks import registry

        config = _config(case)
        if program == "general":
            config.model.attention = "reference"
            cpu.narrow_left_pays = lambda dtype: False
        task = registry.make(registry.resolve(config.to_dict()), read_data=False)
        settings = task.config.run
        # Rows of the nano model are shared by devices, as its config says.
        devices = jax.devices() if case == "nano" else jax.devices()[:1]
        mesh = sharding.make_mesh(settings.mesh, devices)
        with jax.set_mesh(mesh):
            optimizer, _ = task.optimizer(settings.optimizer, settings.steps)
            state = training.init_state(task, optimizer, jax.random.key(0), mesh, False)
            step = training.jitted_train_step(task, optimizer, state, mesh, key=jax.random.key(1))
            batch = random_batch(task.config, documents=4 if case == "nano" else 1)
            batch = jax.device_put(batch, task.batch_shardings(mesh))
            step = step.lower(state, batch).compile()
        self.runs[case, program] = types.SimpleNamespace(
            task=task, mesh=mesh, step=step, state=state, batch=batch
        )
        return sum(leaf.size for leaf in jax.tree.leaves(state.params))

    def export(self, case: str, program: str) -> None:
        """Writes the initial state and the batch for the other side."""
        import numpy as np
        import safetensors.numpy

        from emu3_jax.interop.language import language_model

        run = self.runs[case, program]
        model, optimizer = run.task.config.model, run.task.config.run.optimizer
        language_model.save(self.folder, model, run.state.params)
        batch = {name: np.asarray(run.batch[name]) for name in ("inputs", "targets")}
        safetensors.numpy.save_file(batch, self.folder / "batch.safetensors")
        settings = {"model": model, "optimizer": optimizer}
        settings = {name: dataclasses.asdict(part) for name, part in settings.items()}
        (self.folder / "settings.json").write_text(json.dumps(settings))

    def step(self, case: str, program: str) -> tuple[float, float]:
        """(seconds, loss) of one step."""
        import jax

        run = self.runs[case, program]
        with jax.set_mesh(run.mesh):
            began = time.perf_counter()
            run.state, metrics = jax.block_until_ready(run.step(run.state, run.batch))
            seconds = time.perf_counter() - began
        total, weight = metrics["loss"]
        return seconds, float(total / weight)


def _config(case: str):
    """The config of one case, without what reads data."""
    from configs import transformer_nano

    config = transformer_nano.get_config()
    del config.start
    config.evaluation = ()
    config.model.vocab_size = NANO_VOCAB
    config.run.optimizer.update(dict(learning_rate=1e-4, warmup_steps=0, schedule="constant"))
    if case == "66M":
        config.model.update(MODEL)
        config.data.update(dict(batch_size=2, sequence_length=1024))
        config.loss.chunk_tokens = 512
    return config


def random_batch(config, documents: int) -> dict:
    """Random tokens; each row has some documents of one length."""
    import numpy as np

    rows, length = config.data.batch_size, config.data.sequence_length
    shape, size = (rows, length), length // documents
    index = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (rows, length + 1))
    return dict(
        inputs=tokens[:, :-1].astype(np.int32),
        targets=tokens[:, 1:].astype(np.int32),
        weights=np.ones(shape, np.float32),
        classes=np.ones(shape, np.uint8),
        sources=np.zeros(shape, np.int32),
        segment_ids=index // size + 1,
        positions=index % size,
    )


def compare(python: str, ways: list[str], repeats: int, folder: str) -> None:
    """Starts all processes, checks that the sides agree, times them alternately, prints."""
    start = functools.partial(Process, sys.executable, __file__, "ours", folder)
    ours = {program: start() for program in PROGRAMS}
    processes = list(ours.values())
    try:
        counts = {c: [p(*("prepare", c, n)) for n, p in ours.items()] for c in ("66M", "nano")}
        ours["cpu"]("export", "66M", "cpu")
        theirs = {way: Process(python, __file__, "torch", folder) for way in ways}
        processes += theirs.values()
        for way, process in theirs.items():
            if (count := process("prepare", way)) != counts["66M"][0]:
                raise SystemExit(f"torch has {count} parameters, not {counts['66M'][0]}")
        takers = {f"emu3_jax {n}": (p, "step", "66M", n) for n, p in ours.items()}
        takers |= {f"torch {way}": (process, "step") for way, process in theirs.items()}
        nano = {f"emu3_jax {n}": (p, "step", "nano", n) for n, p in ours.items()}
        found = {
            "66M": measure("66M", 2 * 1024, takers, repeats),
            "nano": measure("nano", 4 * 352, nano, 3 * repeats),
        }
    finally:
        for process in processes:
            process.close()
    torch = min((f"torch {way}" for way in ways), key=lambda name: found["66M"][name][0])
    for case, other in (("66M", torch), ("66M", "emu3_jax general"), ("nano", "emu3_jax general")):
        pairs = zip(found[case][other], found[case]["emu3_jax cpu"], strict=True)
        median, fastest = (theirs / ours for theirs, ours in pairs)
        print(f"{case}, tokens/s against {other}: {median:.2f} x, fastest steps {fastest:.2f} x")


def measure(case: str, tokens: int, takers: dict, repeats: int) -> dict[str, tuple[float, float]]:
    """Median and least seconds of a step by taker, in turns, after a check of the first losses."""
    first = {
        name: [process(*call)[1] for _ in range(CHECKED)]
        for name, (process, *call) in takers.items()
    }
    right, *_ = first.values()
    for name, losses in first.items():
        for step, (loss, expected) in enumerate(zip(losses, right, strict=True)):
            difference = abs(loss - expected) / expected
            found = f"loss {loss:.6f}, relative difference {difference:.1e}"
            print(f"{case}, {name}, step {step}: {found}")
            if not difference <= TOLERANCES[min(step, 1)]:  # also true for NaN
                raise SystemExit("that is too much")
    seconds = {name: [] for name in takers}
    for _ in range(repeats):
        for name, (process, *call) in takers.items():
            seconds[name].append(process(*call)[0])
    found = {name: (statistics.median(times), min(times)) for name, times in seconds.items()}
    for name, (median, fastest) in found.items():
        rates = f"{tokens / median:.0f} tokens/s, fastest {tokens / fastest:.0f}"
        print(f"{case}, {name}: {median:.3f} s per step, {rates}", flush=True)
    return found


def make_side(side: str, folder: pathlib.Path):
    """The object whose methods a process of this side serves."""
    if side == "ours":
        return Ours(folder)
    from benchmarks.torch_peer.torch_language import Theirs

    return Theirs(folder, CORES)


def main() -> None:
    """Reads the options and compares the two sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", default=sys.executable, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps (%(default)s)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=["eager"], help="of torch")
    parser.add_argument("--huge_pages", action="store_true", help="allocate in pages of 2 MiB")
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(functools.partial(make_side, options.side), options.folder)
    elif options.repeats < 1 or not options.ways:
        parser.error("--repeats and the number of --ways must be at least 1")
    elif not has_torch(options.torch_python):
        parser.error(f"--torch_python: {options.torch_python} cannot import torch and safetensors")
    else:
        os.environ.update(HUGE_PAGES if options.huge_pages else {})
        with tempfile.TemporaryDirectory() as folder:
            compare(options.torch_python, options.ways, options.repeats, folder)


if __name__ == "__main__":
    main()
