"""Encoding for datasets, on one device and on several."""

import jax
import numpy as np
from tiny_vision_tokenizer import TINY, random_variables

from emu3_jax.data.codec.vision_encoder import VisionEncoder
from emu3_jax.models import cpu
from emu3_jax.models.vision.tokenizer import VisionTokenizer

TOKENIZER = (VisionTokenizer(TINY), random_variables(TINY))


def encoded(encoder, pixels):
    """The codes of images, three at once."""
    batcher, codes = encoder.batcher(3, 1), []
    for image in pixels:
        batcher.add(image, codes.append)
    batcher.flush()
    return codes


def test_devices_share_a_batch_without_changing_codes():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    codes = encoded(VisionEncoder(*TOKENIZER, devices=jax.devices()[:2]), pixels)
    assert {(c.shape, c.dtype) for c in codes} == {((8, 8), np.dtype(np.int32))}
    np.testing.assert_array_equal(
        codes, encoded(VisionEncoder(*TOKENIZER, devices=jax.devices()[:1]), pixels)
    )


def test_several_cpus_do_not_use_the_single_cpu_code(monkeypatch):
    """A single CPU would encode large frames one by one, which on a mesh gathers all frames."""
    alone = []
    monkeypatch.setattr(cpu, "one_at_a_time", lambda *_: alone.append(cpu.is_single_cpu()) or False)
    pixels = np.zeros((2, 20, 12, 3), np.uint8)
    for devices, expected in ((jax.devices()[:2], False), (jax.devices()[:1], True)):
        encoded(VisionEncoder(*TOKENIZER, devices=devices), pixels)
        assert {*alone} == {expected}
        alone.clear()
