"""What a quarter of an hour of one GPU can tell; `bash benchmarks/gpu.sh` runs it.

  PYTHONPATH=. python -m benchmarks.gpu.run_all [--output=runs/gpu.json] [--budget_s=600] [--tiny]

Emu3-8B with random weights drawing an image of 720 x 720 with guidance, sequential and jacobi, in
bfloat16 and with int8 weights and cache (drawing.py); cuDNN's attention against the reference
(attention_error.py); the training step of configs/emu3_1b5.py on one card (training_step.py). The
most important parts come first. After each part everything so far is written to `--output`; a part
that fails leaves one sentence there. No part begins after `--budget_s` seconds. At the end it is
printed as a section of docs/reference/measurements.md (section.py).

`--tiny` runs the same code on small models, on any machine; its figures mean nothing.
"""

import argparse
import dataclasses
import datetime
import functools
import gc
import json
import pathlib
import time
from collections.abc import Callable

import jax

from benchmarks.gpu import attention_error, card, drawing, training_step
from benchmarks.gpu.section import section
from configs import emu3_1b5, emu3_8b_stage1

INT8 = ("weights", "cache")
TINY = dict(
    hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
      model: fields of both configs' models that are replaced.
      training: further ones of the model that is trained.
      rows, length: of the batch that is trained on; attention is measured on one row.
      mib, side: see `card.measure`.
      windows: of jacobi.
      points, passes, repeats: see `drawing.measure`.
      stacked: whether `sequential` also draws out of a stack of layers.
      kernel: the attention that is measured.
      changes: what is changed of the trained model beside its config, one step each. Less is
        computed again; and if cuDNN's kernel fails, there is one time all the same.
    """

    model: dict = dataclasses.field(default_factory=dict)
    training: dict = dataclasses.field(default_factory=dict)
    rows: int = 8  # 41,000 tokens: with remat=full they fit a card of 80 GB
    length: int = 5120
    mib: int = 4096
    side: int = 8192
    windows: tuple[int, ...] = (64, 16, 32)
    points: int = 3
    passes: int = 64
    repeats: int = 3
    stacked: bool = True
    kernel: str = "cudnn"
    changes: tuple[dict, ...] = (dict(remat="attention"), dict(attention="blockwise"))


SMALL = Scale(
    model=TINY,
    training=dict(vocab_size=500),
    rows=2,
    length=64,
    mib=4,
    side=64,
    windows=(4,),
    points=1,
    passes=2,
    repeats=1,
    stacked=False,
    kernel="blockwise",
    changes=(),
)


def parts(scale: Scale, device: jax.Device, measured: dict) -> dict[str, Callable[[], dict]]:
    """Name → what measures it, the most important ones first; `measured` is the card."""
    large = emu3_8b_stage1.get_config()
    large.model.update(scale.model)

    def drawn(window: int | None = None, quantize: tuple[str, ...] = (), stacked: bool = False):
        how = dict(points=scale.points, passes=scale.passes, repeats=scale.repeats)
        return functools.partial(
            drawing.measure, large, device, measured, quantize, window, stacked, **how
        )

    def trained(**model):
        config = emu3_1b5.get_config()
        config.model.update({**scale.model, **scale.training, **model})
        config.data.update(batch_size=scale.rows, sequence_length=scale.length)
        config.loss.chunk_tokens = min(config.loss.chunk_tokens, scale.length)
        repeats = 1 + 2 * (scale.repeats - 1)
        return functools.partial(training_step.measure, config, device, measured, repeats)

    model = emu3_1b5.get_config().model
    model.update(scale.model)
    heads = attention_error.Sizes(
        1, scale.length, model.num_heads, model.num_kv_heads, model.head_dim
    )
    first, *others = scale.windows
    found = {
        "sequential": drawn(),
        "sequential int8": drawn(None, INT8),
        f"jacobi {first}": drawn(first),
        f"jacobi {first} int8": drawn(first, INT8),
        "attention": functools.partial(
            attention_error.measure, heads, device, scale.kernel, scale.repeats
        ),
        "training": trained(),
    }
    if scale.stacked:
        found["sequential stacked"] = drawn(stacked=True)
    for window in others:
        found[f"jacobi {window}"] = drawn(window)
        found[f"jacobi {window} int8"] = drawn(window, INT8)
    for change in scale.changes:
        found[f"training {change}"] = trained(**change)
    return found


def run(scale: Scale, output: pathlib.Path, budget_s: float) -> dict:
    """Measures all parts and writes the JSON after each; returns what was written."""
    began = time.perf_counter()
    device = jax.devices()[0]
    _say(began, f"{device.device_kind}: bandwidth and peak")
    measured = card.measure(device, scale.mib, scale.side)
    today = datetime.date.today().isoformat()
    found = {"date": today, "tiny": scale is SMALL, "card": measured, "parts": {}}
    for name, measure in parts(scale, device, measured).items():
        spent = time.perf_counter() - began
        if spent > budget_s:
            result = {"error": f"not begun: {spent:.0f} of {budget_s:.0f} s were spent"}
        else:
            _say(began, name)
            result = _guarded(measure)
            gc.collect()  # a part that has failed may hold on to its arrays
        found["parts"][name] = result
        found["seconds"] = time.perf_counter() - began
        _write(output, found)
        _say(began, f"{name}: {result.get('error', 'done')}")
    return found


def _guarded(measure: Callable[[], dict]) -> dict:
    """The result, or one sentence of what went wrong: the other parts still count."""
    try:
        return measure()
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {line[:300]}"}


def _say(began: float, line: str) -> None:
    print(f"{time.perf_counter() - began:6.0f} s  {line}", flush=True)


def _write(output: pathlib.Path, found: dict) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Reads the options and runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    file = pathlib.Path("runs/gpu.json")
    parser.add_argument("--output", type=pathlib.Path, default=file, help="(%(default)s)")
    parser.add_argument("--budget_s", type=float, default=600, help="seconds (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small models, on any machine")
    options = parser.parse_args(arguments)
    if options.budget_s <= 0:
        parser.error(f"--budget_s={options.budget_s} must be above 0 seconds")
    if not options.tiny and jax.devices()[0].platform != "gpu":
        parser.error(f"JAX sees no GPU here, only {jax.devices()[0]}; --tiny runs on any machine")
    scale = SMALL if options.tiny else Scale()
    print(section(run(scale, options.output, options.budget_s)), end="")


if __name__ == "__main__":
    main()
