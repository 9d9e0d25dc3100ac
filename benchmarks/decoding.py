"""Decoding compared with transformers' `generate`: the same weights, in turns in one run.

  PYTHONPATH=. python benchmarks/decoding.py [--torch_python=python] [--repeats=3] [--new=420]

`--torch_python` is the Python of an environment with torch and transformers.

A model of 66 M weights (hidden 512, 8 layers of 8 heads over 4, MLP 1,408, 40,960 ids of which
32,768 are codes) in float32 draws `--new` codes after prompts of 32 tokens with top-k 2,048, in
batches of 1, 2 and 8, with and without guidance 3. Logits of both sides must agree first. The other
side waits while one is timed. Prints medians of steps a second and their ratio; above 1 this
package is faster. Here codes alone can be drawn, there any id: that is what each side offers.
`--decoder=jacobi --window=8` measures another decoder of this package against `sequential`.
"""

import argparse
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.torch_peer.process import Process, has_packages
from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import Request, Sampling, generate
from emu3_jax.interop import hf_export
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

VOCAB = vocab_lib.small(text_size=40_960 - 32_768 - 8, codebook_size=32_768)
CONFIG = TransformerConfig(VOCAB.size, 512, 1408, 8, 8, 4, 64, dropout=0.0)
PROMPT, TOP_K, GUIDANCE = 32, 2048, 3.0
CASES = [(batch, guidance) for batch in (1, 2, 8) for guidance in (1.0, GUIDANCE)]
TOLERANCE = 1e-4  # float32 logits of order one through eight layers


def requests(prompts: np.ndarray, negatives: np.ndarray, new: int, guided: bool) -> list[Request]:
    """One for each row of the prompts."""
    mask = np.full(new, -1, np.int32)
    pairs = zip(prompts, negatives, strict=True)
    return [Request(prompt, negative if guided else None, mask) for prompt, negative in pairs]


def compare(options) -> None:
    """Checks that both sides agree, times them in turns, prints."""
    model = Transformer(CONFIG)
    boxed = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params, rng = nn.unbox(boxed), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        hf_export.save_language_model(folder, (CONFIG, params), VOCAB, 2048)
        theirs = Process(options.torch_python, "benchmarks.torch_peer.torch_decoding", folder)
        try:
            tokens = rng.integers(0, VOCAB.text_size, (2, PROMPT), np.int32)
            here = np.asarray(model.apply({"params": params}, tokens))[:, -1]
            difference = np.abs(here - np.array(theirs("logits", tokens.tolist()))).max()
            print(f"largest difference of logits {difference:.1e}")
            if not difference < TOLERANCE:
                raise SystemExit("that is too much")
            for batch, guidance in CASES:
                prompts, negatives = rng.integers(0, VOCAB.text_size, (2, batch, PROMPT), np.int32)
                asked = requests(prompts, negatives, options.new, guidance != 1)
                settings = Sampling(
                    top_k=TOP_K,
                    guidance=guidance,
                    decoder=options.decoder,
                    window=options.window,
                )
                arguments = (prompts.tolist(), negatives.tolist(), options.new, TOP_K, guidance)
                generate(model, params, asked, settings, VOCAB)
                theirs("generate", *arguments[:2], 2, *arguments[3:])
                ours, others = [], []
                for _ in range(options.repeats):
                    began = time.perf_counter()
                    generate(model, params, asked, settings, VOCAB)
                    ours.append(time.perf_counter() - began)
                    others.append(theirs("generate", *arguments))
                mine, other = (options.new / statistics.median(x) for x in (ours, others))
                print(
                    f"batch {batch}, guidance {guidance:g}: {mine:.1f} steps a second, "
                    f"transformers {other:.1f}, ratio {mine / other:.2f}",
                    flush=True,
                )
        finally:
            theirs.close()


def main() -> None:
    """Reads the options and compares the two sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", default=sys.executable, help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs (%(default)s)")
    parser.add_argument("--new", type=int, default=420, help="new tokens (%(default)s)")
    parser.add_argument("--decoder", default="sequential", help="of this package (%(default)s)")
    parser.add_argument("--window", type=int, help="of the decoder")
    options = parser.parse_args()
    if not has_packages(options.torch_python, "torch, transformers"):
        parser.error(f"--torch_python: {options.torch_python} cannot import torch and transformers")
    compare(options)


if __name__ == "__main__":
    main()
