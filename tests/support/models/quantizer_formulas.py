"""The expected results of each quantizer, in float64, and small quantizers of each kind."""

import jax
import numpy as np

from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

N, D = 16, 4
LEVELS = (2, 3, 4, 5)
CONFIGS = {
    "nearest": VisionTokenizerConfig(codebook_size=N),
    "rotation": VisionTokenizerConfig(codebook_size=N, gradient="rotation"),
    "cosine": VisionTokenizerConfig(codebook_size=N, quantizer="cosine"),
    "ibq": VisionTokenizerConfig(codebook_size=N, quantizer="ibq"),
    "lfq": VisionTokenizerConfig(codebook_size=N, quantizer="lfq"),
    "fsq": VisionTokenizerConfig(codebook_size=120, quantizer="fsq", fsq_levels=LEVELS),
}
EPS = 2.0**-24  # of float32


def _variables(config, seed=1, unit=False):
    if config.quantizer in ("lfq", "fsq"):
        return {}
    table = np.random.default_rng(seed).normal(size=(config.codebook_size, D))
    table = _unit(table) if unit else table
    return {"params": {"embedding": table.astype(np.float32)}}


def _latents(shape=(5, 10), scale=1.0):
    return (scale * np.random.default_rng(0).normal(size=(*shape, D))).astype(np.float32)


def _run(quantizer):
    """All three methods: (Quantized, codes of the latents, entries of these codes)."""

    @jax.jit
    def run(variables, x):
        codes = quantizer.apply(variables, x, method="codes")
        entries = quantizer.apply(variables, codes, method="entries")
        return quantizer.apply(variables, x), codes, entries

    return run


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _entropy_loss(scores_PN):
    """Mean entropy minus entropy of the mean, of softmax(scores / 0.01)."""
    p = _softmax(scores_PN / 0.01)
    entropies = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
    mean = p.mean(axis=0)
    return entropies.mean() + np.sum(mean * np.log(np.maximum(mean, 1e-300)))


def _sign_table():
    bits = (np.arange(N)[:, None] >> np.arange(D)) & 1
    return 2.0 * bits - 1.0


def _fsq_span():
    levels = np.array(LEVELS)
    span, offset = (levels - 1) * 0.999 / 2, np.where(levels % 2, 0.0, 0.5)
    return span, offset, np.tan(offset / span)


def _expected(config, x, table):
    """(codes, vectors, losses) in float64."""
    if config.quantizer == "fsq":
        span, offset, shift = _fsq_span()
        levels = np.round(np.tanh(x + shift) * span - offset)
        half = np.array(LEVELS) // 2
        codes = np.zeros(x.shape[:-1], int)
        for i in reversed(range(D)):
            codes = codes * LEVELS[i] + (levels + half)[..., i].astype(int)
        return codes, levels / half, {}
    if config.quantizer == "lfq":
        table = _sign_table()
        codes = ((x > 0) * 2 ** np.arange(D)).sum(-1)
    elif config.quantizer == "ibq":
        codes = (x @ table.T).argmax(-1)
    else:
        if config.quantizer == "cosine":
            x, table = _unit(x), _unit(table)
        codes = ((x[..., None, :] - table) ** 2).sum(-1).argmin(-1)
    squared = ((table[codes] - x) ** 2).mean()
    losses = {"commitment": squared, "codebook": squared}
    if config.quantizer == "lfq":
        flat = x.reshape(-1, D)
        losses = {"commitment": squared, "entropy": _entropy_loss(2 * flat @ table.T)}
    if config.quantizer == "ibq":
        scores = x.reshape(-1, D) @ table.T
        losses |= {"commitment": 2 * squared, "entropy": _entropy_loss(scores)}
    return codes, table[codes], losses
