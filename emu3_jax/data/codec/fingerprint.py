"""Fingerprints of the tokenizers that made ids and codes; datasets and models state them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from emu3_jax.models.vision.tokenizer_config import COMPUTATION
from emu3_jax.sharding import to_host

# Modules of a vision tokenizer that decide its codes, and fields of its config that do not.
CODING_PARTS = ("encoder", "quant_conv", "quantize")
NOT_IN_CODES = (*COMPUTATION, "dropout", "out_channels", "gradient")


def vision_fingerprint(config: Any, arrays: Mapping[str, Any]) -> str:
    """Twelve hex digits of what decides a vision tokenizer's codes: equal only for equal codes.

    These are the encoder, the last layer before the codebook, and the codebook. The decoder does
    not count: one that is trained further reads the same tokens.

    Args:
      config: a VisionTokenizerConfig. Fields at their defaults are left out, so that a new field
        changes no fingerprint.
      arrays: its variables, {"params": …, "batch_stats": …}; nested mappings, in any order.
    """
    plain = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default and field.name not in NOT_IN_CODES
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    coding = {
        collection: {name: parts[name] for name in CODING_PARTS if name in parts}
        for collection, parts in arrays.items()
    }
    for name, value in sorted(_flat(coding)):
        value = to_host(value)
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:12]


def _flat(arrays: Mapping, prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}/")
        else:
            flat.append((f"{prefix}{name}", value))
    return flat


def check_same(what: str, stated: Mapping[str, str | None]) -> None:
    """Checks that all parts belong to one tokenizer, vocabulary or format.

    Args:
      what: "vision tokenizer", "vocabulary", …
      stated: the beginning of a sentence ("runs/tokens was made with") → the fingerprint or name
        that ends it; None or "" if none is stated.

    Raises:
      ValueError: two differ: "runs/tokens was made with the vocabulary 1, but …".
    """
    known: dict[str, str] = {}
    for begin, name in stated.items():
        if name:
            known.setdefault(name, begin)
    if len(known) > 1:
        (one, here), (other, there), *_ = known.items()
        raise ValueError(
            f"{here} the {what} {one}, but {there} {other}; remake one of the two with the "
            f"other's {what}"
        )
