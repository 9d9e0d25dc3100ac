r"""What the encoder's choice of codes costs: codes found by a search through the decoder.

  PYTHONPATH=. python benchmarks/data/searched_codes.py --data=runs/styles/corpus styles

Decoder and codebook stay as they are. The search starts at the encoder's latents of each still and
descends the gradient of its squared error, straight through the quantizer; the best codes on the
way count. So the PSNR of "searched" is a lower bound of what another encoder could reach with the
same decoder and as many codes. "latents" is the same search without the quantizer: what the decoder
could show if a position took any value. PSNR in dB before rounding to whole levels.
"""

import argparse
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import emu3_jax
from emu3_jax.data import media
from emu3_jax.evaluate import items
from emu3_jax.progress import Progress

BATCH = 32
# Of Adam; with 0.03 the codes of 32 stills were 0.15 dB worse.
RATE = 0.01


def search(
    tokenizer, pixels: jax.Array, steps: int, quantised: bool, done: Callable[[int], None]
) -> tuple[np.ndarray, ...]:
    """Squared errors of the encoder's codes and of the best that were found.

    Args:
      tokenizer: (module, variables).
      pixels: float [B, H, W, 3] in [-1, 1].
      steps: of the search.
      quantised: whether a position takes an entry of the codebook.
      done: called after each step with 1.

    Returns:
      Two float [B], means over the values of each still.
    """
    module, variables = tokenizer
    rate = optax.cosine_decay_schedule(RATE, steps, alpha=0.1)
    optimizer = optax.adam(rate)

    def errors(module, latents):
        if quantised:
            entries = module.quantize.entries(module.quantize.codes(latents))
            latents += jax.lax.stop_gradient(entries - latents)
        decoded = module.decoder(module.post_quant_conv(latents), latents, True, False, None)[:, 0]
        error_B = jnp.mean(jnp.square(jnp.clip(decoded, -1, 1) - pixels), axis=(1, 2, 3))
        return jnp.sum(error_B), error_B

    @jax.jit
    def step(latents, state, best_B):
        gradient_of = jax.grad(lambda x: module.apply(variables, x, method=errors), has_aux=True)
        gradient, error_B = gradient_of(latents)
        update, state = optimizer.update(gradient, state)
        return latents + update, state, jnp.minimum(best_B, error_B), error_B

    latents = module.apply(variables, pixels).latents
    state, best_B, first_B = optimizer.init(latents), jnp.full(len(pixels), jnp.inf), None
    for _ in range(steps):
        latents, state, best_B, error_B = step(latents, state, best_B)
        first_B = error_B if first_B is None else first_B
        done(1)
    return np.asarray(first_B), np.asarray(best_B)


def psnr(error_N: list[float]) -> float:
    """Mean in dB over stills of these squared errors, of values in [-1, 1]."""
    return float(np.mean(-10 * np.log10(np.asarray(error_N) / 4)))


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", help="name or directory")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--split", default="validation", help="(%(default)s)")
    parser.add_argument("--stills", type=int, default=128, help="at random (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="(%(default)s)")
    given = parser.parse_args()
    every = [item.pixels for item in items.Reader().read_images(given.data, given.split)]
    rows = np.random.default_rng(0).permutation(len(every))[: given.stills]
    tokenizer = emu3_jax.load_vision_tokenizer(given.tokenizer)
    batches = range(0, len(rows), BATCH)
    count = Progress(print).counter("steps", 2 * given.steps * len(batches))
    encoded, searched, free = [], [], []
    for start in batches:
        stills = [every[i] for i in rows[start : start + BATCH]]
        pixels = jnp.asarray(media.to_model(np.stack(stills)))
        first_B, best_B = search(tokenizer, pixels, given.steps, True, count)
        encoded += first_B.tolist()
        searched += best_B.tolist()
        free += search(tokenizer, pixels, given.steps, False, count)[1].tolist()
    print("| codes | PSNR |\n|---|---|")
    for name, errors in (("encoder", encoded), ("searched", searched), ("latents", free)):
        print(f"| {name} | {psnr(errors):.2f} |")


if __name__ == "__main__":
    main()
