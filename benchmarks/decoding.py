"""Decoding compared with transformers' `generate`: the same weights, in turns in one run.

  PYTHONPATH=. python benchmarks/decoding.py [--torch_python=python] [--repeats=3] [--new=420]

`--torch_python` is the Python of an environment with torch and transformers.

A model of 66 M weights (hidden 512, 8 layers of 8 heads over 4, MLP 1,408, 40,960 ids of which
32,768 are codes) in float32 draws `--new` codes after prompts of 32 tokens with top-k 2,048, in
`--batches`, with and without guidance 3. Logits of both sides must agree first. The other
side waits while one is timed. Prints medians of steps/s and their ratio; above 1 this
package is faster. Here codes alone can be drawn, there any id: that is what each side offers.
`--decoder=jacobi --window=8` measures another decoder of this package.
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from benchmarks.torch_peer.processes import Process, has_torch, run_side

TEXTS, CODES = 40_960 - 32_768 - 8, 32_768
PROMPT, TOP_K, GUIDANCE = 32, 2048, 3.0
TOLERANCE = 1e-4  # float32 logits of order one through eight layers


class Ours:
    """The side of this package."""

    def __init__(self, options):
        import jax
        import jax.numpy as jnp
        from flax import linen as nn

        from emu3_jax import vocab
        from emu3_jax.models.language.transformer import Transformer, TransformerConfig

        self.options, self.vocab = options, vocab.small(TEXTS, CODES)
        sizes = (self.vocab.size, 512, 1408, 8, 8, 4, 64)
        self.model = Transformer(TransformerConfig(*sizes, dropout=0.0))
        boxed = jax.jit(self.model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        self.params = nn.unbox(boxed)["params"]

    def export(self, folder: str) -> None:
        """Writes the weights for the other side."""
        from emu3_jax.interop import hf_export

        hf_export.save_language_model(folder, (self.model.config, self.params), self.vocab, 2048)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits of the token after each row."""
        return np.asarray(self.model.apply({"params": self.params}, tokens))[:, -1]

    def generate(self, prompts: np.ndarray, negatives: np.ndarray, guidance: float) -> float:
        """Seconds for the new tokens of each row."""
        from emu3_jax.generate import Request, Sampling, generate

        mask = np.full(self.options.new, -1, np.int32)
        pairs = zip(prompts, negatives, strict=True)
        asked = [Request(p, None if guidance == 1 else n, mask) for p, n in pairs]
        decoder = dict(decoder=self.options.decoder, window=self.options.window)
        settings = Sampling(top_k=TOP_K, guidance=guidance, **decoder)
        began = time.perf_counter()
        generate(self.model, self.params, asked, settings, self.vocab)
        return time.perf_counter() - began


def compare(options) -> None:
    """Checks that both sides agree, times them in turns, prints."""
    ours, rng = Ours(options), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        ours.export(folder)
        theirs = Process(options.torch_python, __file__, "torch", folder)
        try:
            tokens = rng.integers(0, TEXTS, (2, PROMPT), np.int32)
            there = np.array(theirs("logits", tokens.tolist()))
            difference = np.abs(ours.logits(tokens) - there).max()
            print(f"largest difference of logits {difference:.1e}")
            if not difference < TOLERANCE:
                raise SystemExit("that is too much")
            for batch, guidance in itertools.product(options.batches, (1.0, GUIDANCE)):
                prompts, negatives = rng.integers(0, TEXTS, (2, batch, PROMPT), np.int32)
                compare_case(ours, theirs, prompts, negatives, guidance)
        finally:
            theirs.close()


def compare_case(ours: Ours, theirs: Process, prompts, negatives, guidance: float) -> None:
    """Times one case and prints its line."""
    new = ours.options.new
    given = prompts.tolist(), negatives.tolist()
    ours.generate(prompts, negatives, guidance)  # compiles
    theirs("generate", *given, 2, TOP_K, guidance)
    here, there = [], []
    for _ in range(ours.options.repeats):
        here.append(ours.generate(prompts, negatives, guidance))
        there.append(theirs("generate", *given, new, TOP_K, guidance))
    mine, other = (new / statistics.median(seconds) for seconds in (here, there))
    print(
        f"batch {len(prompts)}, guidance {guidance:g}: {mine:.1f} steps/s, "
        f"transformers {other:.1f}, ratio {mine / other:.2f}",
        flush=True,
    )


def main() -> None:
    """Reads the options and compares the two sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", default=sys.executable, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs (%(default)s)")
    parser.add_argument("--new", type=int, default=420, help="new tokens (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 8], help="(%(default)s)")
    parser.add_argument("--decoder", default="sequential", help="of this package (%(default)s)")
    parser.add_argument("--window", type=int, help="of the decoder")
    parser.add_argument("--side", choices=("torch",), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        from benchmarks.torch_peer.torch_decoding import Theirs

        run_side(Theirs, options.folder)
    elif has_torch(options.torch_python, "torch, transformers"):
        compare(options)
    else:
        parser.error(f"--torch_python: {options.torch_python} cannot import torch and transformers")


if __name__ == "__main__":
    main()
