"""Drawing an image of 720 x 720 by Emu3-8B with random weights: milliseconds of a forward pass.

The program is the one that `emu3_jax.generate` runs, compiled ahead of time, over a list of layers
or over one stack of them (`model.scan_layers`): out of a stack XLA's GPU compiler copies the
weights of each layer in every pass. How long a pass takes depends on the slots of the cache that
it reads, in four stages (`scheduling.live_slots`). It is timed in some of them, over a stretch of
passes each, and lies on a line in between. The time of an image is the sum over its passes. Reading
the prompt and decoding the codes are left out.

Random weights say nothing of how many drafts `jacobi` keeps. So of a window the time of a pass is
measured, and how many tokens it must commit to be as fast as `sequential`.
"""

import concurrent.futures
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from emu3_jax import vocab
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.generate.decoding.reader import Numbers
from emu3_jax.generate.decoding.rows import Rows
from emu3_jax.models.language.layers import INIT_STDDEV
from emu3_jax.train.tasks.language.transformer_programs import SampleProgram

GUIDANCE = 3.0


def measure(
    config,
    device: jax.Device,
    card: dict,
    quantize: tuple[str, ...] = (),
    window: int | None = None,
    stacked: bool = False,
    points: int = 3,
    passes: int = 64,
    repeats: int = 3,
) -> dict:
    """Times passes of one decoder.

    Args:
      config: of the model, such as configs/emu3_8b_stage1.py.
      device: the card.
      card: the result of `card.measure`.
      quantize: what is int8: "weights", "cache".
      window: of `jacobi`; None for `sequential`.
      stacked: whether the layers are one stack.
      points: stages of the cache in which passes are timed: the first, the last, those between.
      passes: the most that are timed at once.
      repeats: how often.
    """
    config = ConfigDict(config)
    with config.unlocked():
        config.model.scan_layers = stacked
    sampling = {} if window is None else {"decoder": "jacobi", "window": window}
    program = program_of(config, "sample", {**sampling, "quantize": quantize})
    of_token = program.live_slots()
    stages = sorted(set(of_token))
    stages = [stages[round(i)] for i in np.linspace(0, len(stages) - 1, points)]
    began = time.perf_counter()
    lowered = [program.lower([device], live) for live in stages]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda one: one.compile(), lowered))
    compile_s = time.perf_counter() - began
    arguments = _arguments(compiled[0])
    found = []
    for live, run in zip(stages, compiled, strict=True):
        token = of_token.index(live)
        ms = _ms_of_pass(run, arguments, _rows(program, token), passes, repeats)
        found.append({"slots": live, "token": token, "ms": ms})
    ms = float(np.mean(np.interp(of_token, stages, [one["ms"] for one in found])))
    least = 1e3 * program.floor_bytes([device]) / card["bandwidth"]
    products = 1e3 * program.matmul_flops([device]) / card["peak"]
    count = program.passes()
    return {
        "decoder": sampling.get("decoder", "sequential"),
        "window": program.decoder.width,
        "int8": list(quantize),
        "stacked": stacked,
        "points": found,
        "ms": ms,
        "floor_ms": max(least, products),
        "seconds": count and count * ms / 1e3,
        "floor_seconds": count and count * max(least, products) / 1e3,
        "gib": max(map(_gib, compiled)),
        "compile_s": compile_s,
    }


def _arguments(compiled) -> list:
    """Weights and cache, made where they are used: weights are never float32."""
    made, (layouts, _) = [], compiled.input_shardings
    for abstract, layout in zip(compiled.args_info[0][:2], layouts[:2], strict=True):
        named, tree = jax.tree.flatten_with_path(abstract)
        shardings = tree.flatten_up_to(layout)
        leaves = [
            _random(_name(path), one.shape, one.dtype, to)(i)
            for i, ((path, one), to) in enumerate(zip(named, shardings, strict=True))
        ]
        made.append(tree.unflatten(leaves))
    return made


def _name(path) -> str:
    """Of a leaf in its dict or named tuple, whatever list it is in there."""
    last = [at for at in path if not isinstance(at, jax.tree_util.SequenceKey)][-1]
    return last.key if isinstance(last, jax.tree_util.DictKey) else last.name


@functools.cache
def _random(name: str, shape: tuple[int, ...], dtype, layout):
    """A function of a number that makes an array; of norms ones, of scales of int8 one number."""

    def make(number):
        key = jax.random.key(number)
        if dtype == jnp.int8:
            return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)
        if name == "scale":
            return jnp.ones(shape, dtype)
        if name.endswith("_scale"):
            # Whole numbers up to 127 that are equally likely have a standard deviation of 73.
            return jnp.full(shape, INIT_STDDEV / 73, dtype)
        return INIT_STDDEV * jax.random.normal(key, shape, dtype)

    return jax.jit(make, out_shardings=layout)


def _rows(program: SampleProgram, token: int) -> Rows:
    """One guided request that is as far as this token of its image."""
    mask, pad = program.mask, vocab.released().pad
    some = np.int32(vocab.released().visual_start)
    schedule = program.decoder.schedule(mask, len(mask))
    one = np.zeros(1, np.int32)
    return Rows(
        prompt_R=np.full(program.BRANCHES, program.PROMPT, np.int32),
        mask_BN=mask[None].astype(np.int32),
        choices_BA=np.zeros((1, 0), np.int32),
        length_B=one + len(mask),
        guided_B=np.ones(1, bool),
        number_B=one,
        last_R=np.full(program.BRANCHES, some),
        step_B=one + token,
        new_BN=np.full((1, len(mask)), pad, np.int32),
        finished_B=np.zeros(1, bool),
        forwards_B=one,
        commits_BW=np.zeros((1, program.decoder.width), np.int32),
        schedule=jax.tree.map(lambda x: x[None], schedule),
    )


def _ms_of_pass(compiled, arguments: list, rows: Rows, passes: int, repeats: int) -> float:
    """The median of some stretches, each from the same rows, after one that is not timed.

    The cache, `arguments[1]`, is donated and replaced.
    """
    settings = (np.uint32(0), np.float32(1), np.float32(1), np.float32(GUIDANCE))
    numbers = Numbers(*(np.array([x]) for x in settings))
    rest = rows, np.ones(1, bool), numbers, np.int32(passes), np.int32(1)
    rest = jax.device_put(rest, compiled.input_shardings[0][3:])
    found = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        arguments[1], _, after = compiled(*arguments, None, *rest)
        done = int(after.forwards_B[0])  # waits; fewer than `passes` if the stage ends
        found.append(1e3 * (time.perf_counter() - began) / done)
    return statistics.median(found[1:])


def _gib(compiled) -> float:
    """Memory of a program with its arguments; results that take the place of arguments once."""
    sizes = compiled.memory_analysis()
    total = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    return (total - sizes.alias_size_in_bytes) / 2**30
