"""Training the nano vision tokenizer with the full objective, compared with the same in torch.

  PYTHONPATH=. python benchmarks/tokenizer_training.py [--torch_python=python] [--repeats=7]

`--torch_python` is the Python of an environment with torch and safetensors.

Model and batch of configs/vision_tokenizer_nano.py (8 stills, 4 clips of 8 frames, 64 pixels,
random here), all losses of configs/vision_tokenizer_nano_decoder.py with the encoder trained too
and the discriminator there from the first step; the VGG16 of the perceptual loss has its full width
and random weights. One step is all three networks forward and back, clipping, Adam, moving average
of the weights. This package trains as `python -m emu3_jax.train` does, and also counts codes and
checks for steps to reject; torch's side is in `torch_peer`, timed in several ways.

Both begin from the same weights, and the losses and gradient norms of their first steps must agree.
Each side is a process on the same two cores; they alternate, one step each, while the others wait.
Prints medians, and finally one line per case: the median of this package against torch's fastest
way, above 1 if this package is faster.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time
import types

from benchmarks.torch_peer.processes import CORES, Process, has_torch, run_side

CASES = {"stills": ("stills",), "clips": ("clips",), "both": ("stills", "clips")}
UNITS = {"stills": "images", "clips": "clips"}
WAYS = ("eager", "channels_last", "compiled")  # of torch
CHECKED = 3  # steps whose losses are compared; they also warm up
# First step: float32 through tens of layers. Later steps: Adam's first updates have full size
# however small the gradient, which amplifies rounding; in the third step the generator's losses of
# torch's own two ways differed by 2e-3.
TOLERANCES = 1e-4, 5e-3
RATE, AVERAGE_DECAY = 1e-4, 0.998


class Ours:
    """The side of this package: every case as the command `train` runs it."""

    def __init__(self, folder: pathlib.Path):
        import jax
        import numpy as np

        from configs import vision_tokenizer_nano, vision_tokenizer_nano_decoder

        self.folder, self.rng = folder, np.random.default_rng(0)
        self.config = vision_tokenizer_nano.get_config()
        self.config.loss = vision_tokenizer_nano_decoder.get_config().loss
        self.config.loss.decoder_only = False
        self.config.loss.adversarial.start = 0
        self.config.loss.perceptual_weights = str(folder / "perceptual.safetensors")
        self.config.run.optimizer.update(dict(learning_rate=RATE, warmup_steps=0))
        self.config.run.optimizer.schedule = "constant"
        self.config.codebook = dict(start="as_is")  # entries are drawn below and not revived
        self.groups, self.key = self.config.data.groups, jax.random.key(1)
        self._save_perceptual()
        self.batch = {
            group["name"]: self.rng.uniform(-1, 1, self._shape(group)).astype(np.float32)
            for group in self.groups
        }
        self.params, self.runs = None, {}

    def _shape(self, group) -> tuple[int, ...]:
        frames = (group["frames"],) if group["kind"] == "clips" else ()
        return (group["count"], *frames, group["size"], group["size"], 3)

    def _save_perceptual(self):
        from emu3_jax.interop.vision import perceptual_weights
        from emu3_jax.models.features.lpips import CONVS, LAST_CONVS

        tree, channels = {}, 3
        for conv in CONVS:
            width = min(64 * 2 ** (int(conv[4]) - 1), 512)
            kernel = self.rng.normal(0, (2 / 9 / channels) ** 0.5, (3, 3, channels, width))
            tree[conv] = {"kernel": kernel, "bias": self.rng.normal(0, 0.1, width)}
            channels = width
        heads = [self.rng.uniform(0, 0.1, tree[conv]["bias"].size) for conv in LAST_CONVS]
        file = self.folder / "perceptual.safetensors"
        perceptual_weights.save(file, {"vgg": tree, "heads": heads})

    def prepare(self, case: str) -> tuple[int, dict[str, int]]:
        """(number of trained parameters, kind -> items per batch); the first case has all kinds."""
        import jax

        from emu3_jax import sharding
        from emu3_jax.train import step as training
        from emu3_jax.train.tasks import registry

        config = self.config.copy_and_resolve_references()
        config.data.groups = tuple(g for g in self.groups if g["name"] in CASES[case])
        task = registry.make(registry.resolve(config.to_dict()))
        run = task.config.run
        mesh = sharding.make_mesh(run.mesh)
        with jax.set_mesh(mesh):
            optimizer, _ = task.optimizer(run.optimizer, run.steps)
            abstract = training.abstract_state(task, optimizer, self.key, mesh, True)
            state = self._drawn(abstract, task.objective.frozen)
            step = training.jitted_train_step(
                task, optimizer, state, mesh, ema_decay=AVERAGE_DECAY, key=self.key
            )
            batch = {name: self.batch[name] for name in CASES[case]}
            batch = jax.device_put(batch, task.batch_shardings(mesh))
        self.runs[case] = types.SimpleNamespace(mesh=mesh, step=step, state=state, batch=batch)
        items = {name: len(pixels) for name, pixels in batch.items()}
        return sum(leaf.size for leaf in jax.tree.leaves(state.params)), items

    def _drawn(self, abstract, frozen):
        """A state before its first step; no weight is zero, and all cases have the same.

        `frozen`: collections to keep unchanged, the perceptual network.
        """
        import jax
        import numpy as np

        def draw(path, like):
            x = self.rng.standard_normal(like.shape, dtype=np.float32)
            fan_in = max(1, int(np.prod(like.shape[:-1])))
            name = path[-1].key
            return {"kernel": x / fan_in**0.5, "scale": 1 + 0.1 * x, "bias": 0.1 * x}.get(name, x)

        def blank(path, like):
            return np.full(like.shape, getattr(path[-1], "key", "") == "var", like.dtype)

        state = jax.tree_util.tree_map_with_path(blank, abstract)
        if self.params is None:
            self.params = jax.tree_util.tree_map_with_path(draw, abstract.params)
            self.statistics = state.model_state["batch_stats"]
        params, discriminator = dict(self.params), self.params["discriminator"]
        kinds = state.params["discriminator"]
        params["discriminator"] = {kind: discriminator[kind] for kind in kinds}
        state = state.replace(params=params, ema=params, model_state=state.model_state | frozen)
        # Copies: a step donates its state, and the next case starts from these too.
        put = lambda x, like: jax.device_put(np.array(x), like.sharding)  # noqa: E731
        return jax.tree.map(put, state, abstract)

    def export(self) -> None:
        """Writes the initial state for the other side."""
        import safetensors.numpy
        from flax.traverse_util import flatten_dict

        from emu3_jax.config import to_dataclass
        from emu3_jax.interop.vision import tokenizer_files
        from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig
        from emu3_jax.train.tasks.vision.vision_objective import VisionLossConfig, tokenizer_params

        config = to_dataclass(VisionTokenizerConfig, self.config.model, "model")
        variables = {"params": tokenizer_params(self.params), "batch_stats": self.statistics}
        tokenizer_files.save(self.folder, config, variables)
        discriminator = {}
        for path, x in flatten_dict(self.params["discriminator"]).items():
            if path[-1] == "kernel":
                x = x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
            leaf = "bias" if path[-1] == "bias" else "weight"
            discriminator[".".join((*path[:-1], leaf))] = x.copy()
        safetensors.numpy.save_file(discriminator, self.folder / "discriminator.safetensors")
        batch = dict(self.batch)
        for case, kinds in CASES.items():
            if "clips" in kinds:
                batch[f"frames_{case}"] = self._judged_frames(kinds.index("clips"))
        safetensors.numpy.save_file(batch, self.folder / "batch.safetensors")
        loss = to_dataclass(VisionLossConfig, self.config.loss, "loss")
        settings = {"model": dataclasses.asdict(config), "loss": dataclasses.asdict(loss)}
        settings["optimizer"] = self.config.run.optimizer.to_dict()
        (self.folder / "settings.json").write_text(json.dumps(settings))

    def _judged_frames(self, index: int):
        """int64 [CHECKED, B, n]: the frames that the perceptual loss of these steps uses."""
        import jax
        import numpy as np

        wanted, steps = self.config.loss.perceptual_frames, []
        for step in range(CHECKED):
            key = jax.random.fold_in(jax.random.fold_in(self.key, step), index)
            _, frames_key = jax.random.split(key)
            order = jax.random.uniform(frames_key, self.batch["clips"].shape[:2]).argsort(axis=1)
            steps.append(order[:, :wanted])
        return np.array(steps, np.int64)

    def step(self, case: str, way: str) -> tuple[float, dict[str, float]]:
        """(seconds, losses) of one step."""
        del way
        import jax

        run = self.runs[case]
        with jax.set_mesh(run.mesh):
            began = time.perf_counter()
            run.state, metrics = jax.block_until_ready(run.step(run.state, run.batch))
            seconds = time.perf_counter() - began
        metrics = jax.device_get(metrics)
        return seconds, {name.split("/")[-1]: float(total) for name, (total, _) in metrics.items()}


def compare(python: str, ways: list[str], repeats: int, folder: str) -> None:
    """Starts both sides, checks that they agree, times them alternately, prints."""
    sides = {"ours": Process(sys.executable, __file__, "ours", folder)}
    try:
        lines = []
        for case, kinds in reversed(
            CASES.items()
        ):  # the whole case first: the others use its weights
            made = sides["ours"]("prepare", case)
            if "torch" not in sides:
                sides["ours"]("export")
                sides["torch"] = Process(python, __file__, "torch", folder)
            lines += compare_case(case, kinds, made, ways, repeats, sides)
    finally:
        for side in sides.values():
            side.close()
    print("\n".join(lines))


def compare_case(case, kinds, made, ways, repeats, sides) -> list[str]:
    """The line of one case, in a list; its parts are printed."""
    count, items = made
    for way in ways:
        theirs = sides["torch"]("prepare", case, kinds, way, AVERAGE_DECAY)
        print(f"{case}: {count:,} parameters here, {theirs:,} in torch")
        if theirs != count:
            raise SystemExit("these must be equal")
    taken = [("ours", ""), *(("torch", way) for way in ways)]
    first = {(s, way): [sides[s]("step", case, way) for _ in range(CHECKED)] for s, way in taken}
    losses = {who: [losses for _, losses in steps] for who, steps in first.items()}
    for way in ways:
        check(case, way, losses["ours", ""], losses["torch", way])
    seconds = {who: [] for who in taken}
    for _ in range(repeats):
        for side, way in taken:
            seconds[side, way].append(sides[side]("step", case, way)[0])
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    for (side, way), median in medians.items():
        name = "emu3_jax" if side == "ours" else f"torch {way}"
        rates = ", ".join(f"{items[kind] / median:.2f} {UNITS[kind]}/s" for kind in kinds)
        print(f"{case}, {name}: {median:.3f} s per step, {rates}", flush=True)
    fastest = min(ways, key=lambda way: medians["torch", way])
    ratio = medians["torch", fastest] / medians["ours", ""]
    rates = " and ".join(f"{UNITS[kind]}/s" for kind in kinds)
    return [f"{case}: {rates} {ratio:.2f} x torch's ({fastest})"]


def check(case: str, way: str, ours: list[dict], theirs: list[dict]) -> None:
    """Prints each step's largest difference of a loss; exit 1 if one is too large."""
    for step, (here, there) in enumerate(zip(ours, theirs, strict=True)):
        # The generator's loss is a mean of logits of order one and of both signs.
        scales = {name: 1.0 if "generator" in name else abs(here[name]) for name in there}
        differences = {name: abs(x - here[name]) / scales[name] for name, x in there.items()}
        name = max(differences, key=differences.get)
        where = f"{case}, torch {way}, step {step}: {name} is {there[name]:.6g} there and"
        print(f"{where} {here[name]:.6g} here, the largest difference ({differences[name]:.1e})")
        if not differences[name] <= TOLERANCES[min(step, 1)]:  # also true for NaN
            raise SystemExit("that is too much")


def main() -> None:
    """Reads the options and compares the two sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", default=sys.executable, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps (%(default)s)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS[:2]), help="of torch")
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
        with tempfile.TemporaryDirectory() as folder:
            compare(options.torch_python, options.ways, options.repeats, folder)


def make_side(side: str, folder: pathlib.Path):
    """The object whose methods a process of this side serves."""
    if side == "ours":
        return Ours(folder)
    from benchmarks.torch_peer.torch_training import Theirs

    return Theirs(folder, CORES)


if __name__ == "__main__":
    main()
