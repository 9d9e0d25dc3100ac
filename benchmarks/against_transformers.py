"""Loads exports in transformers, and compares the speed of the vision tokenizer with theirs.

  pip install torch transformers
  PYTHONPATH=. python benchmarks/against_transformers.py [--skip_speed] [--repeats=5]

First, small random models are exported (--layout=hf) and loaded by transformers; logits, codes and
pixels are compared, for each half and for a whole model with an image in its prompt. Then, at the
released size with random weights in float32, encoding and decoding of one 256 x 256 image and of
one clip of 4 such frames are timed, alternating between both libraries in one process. Prints
ratios of medians (above 1: this package is faster).
"""

import argparse
import json
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emu3_jax import vocab
from emu3_jax.interop import hf_export
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

try:
    import torch
    import transformers
    from transformers import (
        Emu3ForCausalLM,
        Emu3ForConditionalGeneration,
        Emu3VQVAE,
        Emu3VQVAEConfig,
    )
except ImportError as error:
    raise SystemExit(f"{error}; this benchmark needs: pip install torch transformers") from error

TOLERANCE = 2e-4  # float32 logits and pixels of order one through tens of layers


def random_variables(module, *example) -> dict:
    """Random variables of a module without compiling its initialisation; variances are positive."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key if hasattr(path[-1], "key") else ""
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        x = rng.standard_normal(leaf.shape, dtype=np.float32)
        return abs(x) + 0.5 if name in ("var", "scale") else x / np.sqrt(fan_in)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


def compare_language_model(directory: str) -> float:
    """Largest difference of the logits."""
    words = vocab.small(100, 60)
    config = TransformerConfig(words.size, 64, 128, 3, 4, 2, 16, dropout=0.0, vocab_multiple=1)
    model = Transformer(config)
    variables = random_variables(model, jnp.zeros((1, 4), jnp.int32))
    hf_export.save_language_model(directory, (config, variables["params"]), words, 64)
    theirs = Emu3ForCausalLM.from_pretrained(directory).eval()
    tokens = np.random.default_rng(1).integers(0, words.size, (2, 24))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    return float(np.abs(np.asarray(model.apply(variables, tokens)) - expected).max())


def compare_vision_tokenizer(directory: str) -> dict[str, float]:
    """Share of differing codes, and the largest difference of pixels, of images and a clip."""
    config = VisionTokenizerConfig(codebook_size=512, ch=32, num_res_blocks=1)
    module = VisionTokenizer(config)
    variables = random_variables(module, jnp.zeros((1, 16, 16, 3)))
    hf_export.save_vision_tokenizer(directory, (config, variables))
    theirs = Emu3VQVAE.from_pretrained(directory).eval()
    rng, out = np.random.default_rng(1), {}
    for kind, shape in (("image", (1, 32, 48, 3)), ("clip", (1, 4, 32, 48, 3))):
        pixels = rng.uniform(-1, 1, shape).astype(np.float32)
        codes = np.asarray(module.apply(variables, pixels, method="encode"))
        drawn = np.asarray(module.apply(variables, codes, method="decode"))
        with torch.no_grad():
            their_codes = encode_theirs(theirs, pixels)
            their_pixels = decode_theirs(theirs, torch.tensor(codes)).numpy()
        out[f"{kind}_codes_differ"] = float(np.mean(codes.ravel() != their_codes.numpy().ravel()))
        their_pixels = np.moveaxis(their_pixels.reshape(-1, 3, 32, 48), 1, -1)
        out[f"{kind}_pixels"] = float(np.abs(drawn.reshape(-1, 32, 48, 3) - their_pixels).max())
    return out


def compare_whole_model(directory: str) -> float:
    """Largest difference of the logits of a text with an image in it.

    Raises:
      SystemExit: the ids or the rotation that transformers reads are not those written.
    """
    vision_config = VisionTokenizerConfig(codebook_size=512, ch=32, num_res_blocks=1)
    vision = VisionTokenizer(vision_config)
    words = vocab.small(100, vision_config.codebook_size)
    config = TransformerConfig(
        words.size, 64, 128, 3, 4, 2, 16, rope_theta=5e4, dropout=0.0, vocab_multiple=1
    )
    model = Transformer(config)
    variables = random_variables(model, jnp.zeros((1, 4), jnp.int32))
    vision_variables = random_variables(vision, jnp.zeros((1, 16, 16, 3)))
    halves = (config, variables["params"]), (vision_config, vision_variables)
    placeholder = words.boi  # the small vocabulary has no id to spare
    hf_export.save_model(directory, *halves, words, 64, placeholder)
    theirs = Emu3ForConditionalGeneration.from_pretrained(directory).eval()
    generation = theirs.generation_config
    found = {
        "rope_theta": theirs.config.text_config.rope_parameters["rope_theta"],
        "ids": (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id),
    }
    written = {"rope_theta": config.rope_theta, "ids": (words.bos, words.eos, words.pad)}
    if found != written:
        raise SystemExit(f"transformers reads {found}, written was {written}")

    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (1, 32, 48, 3)).astype(np.float32)
    codes = np.asarray(vision.apply(vision_variables, pixels, method="encode"))[0]
    rows = np.pad(codes + words.visual_start, ((0, 0), (0, 1)), constant_values=words.eol)
    before, behind = rng.integers(0, 100, (2, 5))
    tokens = np.concatenate([before, rows.ravel(), behind])[None]
    shown = np.concatenate([before, np.full(rows.size, placeholder), behind])[None]
    with torch.no_grad():
        expected = theirs(
            torch.tensor(shown),
            pixel_values=torch.tensor(np.moveaxis(pixels, -1, 1)),
            image_sizes=torch.tensor([[32, 48]]),
        ).logits.numpy()
    return float(np.abs(np.asarray(model.apply(variables, tokens)) - expected).max())


def encode_theirs(model, pixels: np.ndarray) -> torch.Tensor:
    """Codes of [1, (T,) H, W, 3], without the crop of `encode`, which confuses time with height."""
    x = torch.tensor(np.moveaxis(pixels, -1, -3))
    if x.ndim == 4:
        x = x.unsqueeze(1).repeat(1, model.config.temporal_downsample_factor, 1, 1, 1)
    hidden = model.quant_conv(model.encoder(x).permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)
    return model.quantize(hidden)


def decode_theirs(model, codes: torch.Tensor) -> torch.Tensor:
    """Pixels [.., 3, H, W] of codes."""
    return model.decode(codes)


def times(function, repeats: int) -> list[float]:
    """Seconds of each call."""
    out = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        out.append(time.perf_counter() - began)
    return out


def speed(repeats: int) -> dict[str, float]:
    """Ratio of medians, theirs over ours, at the released size."""
    config = VisionTokenizerConfig()
    module = VisionTokenizer(config)
    variables = jax.device_put(random_variables(module, jnp.zeros((1, 16, 16, 3))))
    theirs = Emu3VQVAE(Emu3VQVAEConfig()).eval()
    encode = jax.jit(lambda v, x: module.apply(v, x, method="encode"))
    decode = jax.jit(lambda v, x: module.apply(v, x, method="decode"))
    ratios = {}
    for kind, shape in (("image", (1, 256, 256, 3)), ("clip", (1, 4, 256, 256, 3))):
        pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        codes = np.asarray(encode(variables, pixels))
        their_codes = torch.tensor(codes, dtype=torch.long)
        calls = {
            "encode": (
                lambda pixels=pixels: encode(variables, pixels).block_until_ready(),
                lambda pixels=pixels: encode_theirs(theirs, pixels),
            ),
            "decode": (
                lambda codes=codes: decode(variables, codes).block_until_ready(),
                lambda codes=their_codes: decode_theirs(theirs, codes),
            ),
        }
        for name, (ours, others) in calls.items():
            taken = {"ours": [], "theirs": []}
            with torch.no_grad():
                ours(), others()
                for _ in range(repeats):
                    taken["ours"] += times(ours, 1)
                    taken["theirs"] += times(others, 1)
            medians = {who: statistics.median(values) for who, values in taken.items()}
            ratios[f"{kind}_{name}"] = medians["theirs"] / medians["ours"]
            print(
                f"{kind} {name}: {medians['ours']:.2f} s, transformers {medians['theirs']:.2f} s, "
                f"{ratios[f'{kind}_{name}']:.2f} times as fast",
                flush=True,
            )
    return ratios


def main() -> None:
    """Prints the comparisons and finally one line of JSON; exit 1 if exports differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--skip_speed", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = {"logits": compare_language_model(f"{root}/language")}
        found |= compare_vision_tokenizer(f"{root}/vision")
        found |= {"whole_model_logits": compare_whole_model(f"{root}/whole")}
    for name, value in found.items():
        print(f"{name}: {value:.2g}")
    result = {"versions": {m.__name__: m.__version__ for m in (jax, torch, transformers)}}
    result["differences"] = found
    result["times_as_fast"] = {} if options.skip_speed else speed(options.repeats)
    print(json.dumps(result))
    codes = [value for name, value in found.items() if name.endswith("differ")]
    others = [value for name, value in found.items() if not name.endswith("differ")]
    if max(others) > TOLERANCE or max(codes) > 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
