"""Batches of many sizes: few programs, little padding, and to each its own result."""

import collections
import functools
import logging
import random

import evaluation_stand_ins as parts
import jax
import numpy as np
import pytest

from emu3_jax import compiling, shipped
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.data.codec.canvases import Batcher, side
from emu3_jax.train import weights

FACTORS = (2, 4, 4)


class Encoder:
    """Stands in for a program: each code is the first value of its cell; records every batch."""

    def __init__(self):
        self.batches = []

    def __call__(self, batch, sizes, transposed):
        self.batches.append((batch.shape, sizes, transposed))
        steps = (slice(None, None, 2),) * (batch.ndim == 5) + (slice(None, None, 4),) * 2
        return batch[(slice(None), *steps, 0)].astype(np.int32)

    @property
    def shapes(self):
        return {shape for shape, _, _ in self.batches}


def image(grid, number):
    """uint8 pixels that tell which image they are of, and where."""
    codes = np.add.outer(*(np.arange(n) for n in grid[-2:])) * 3 + number
    codes = np.broadcast_to(codes, grid).astype(np.uint8)
    for axis, factor in enumerate(FACTORS[-len(grid) :]):
        codes = codes.repeat(factor, axis)
    return np.repeat(codes[..., None], 3, -1)


def run(grids, rows=16, **options):
    encoder, results, finished = Encoder(), {}, []
    rows = {"image": rows, "video": rows}
    batcher = Batcher(encoder, rows, FACTORS, (1, 1, 1), finished.append, **options)
    for number, grid in enumerate(grids):
        batcher.add(image(grid, number), lambda codes, n=number: results.update({n: codes}))
    batcher.flush()
    assert sum(finished) == len(grids) and max(finished, default=0) <= rows["image"]
    return encoder, results


def photographs(count, sizes, seed=0):
    """Code grids of photographs between 128 x 128 and 256 x 256 pixels, of 8 x 8 pixels a code."""
    rng, found = random.Random(seed), set()
    limits = media.PixelLimits(128 * 128, 256 * 256, 8)
    while len(found) < sizes:
        aspect, area = 2 ** rng.gauss(0, 0.5), 128 * 256 * 2 ** rng.gauss(0, 0.7)
        try:
            size = (round((area / aspect) ** 0.5), round((area * aspect) ** 0.5))
            found.add(tuple(n // 8 for n in media.smart_resize(*size, limits)))
        except media.MediaError:
            continue
    return [rng.choice(sorted(found)) for _ in range(count)]


@pytest.mark.parametrize("transposes", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_each_gets_its_own_codes(rows, transposes):
    grids = photographs(60, 30) + [(2, 5, 3), (2, 3, 5), (7, 4, 4), (1, 9, 2)] * 3
    random.Random(0).shuffle(grids)
    encoder, results = run(grids, rows, transposes=transposes)
    for number, grid in enumerate(grids):
        expected = image(grid, number)[..., 0]
        steps = tuple(slice(None, None, n) for n in FACTORS[-len(grid) :])
        np.testing.assert_array_equal(results[number], expected[steps])
    assert any(swapped for _, _, swapped in encoder.batches) == transposes


def test_sizes_are_those_of_the_codes():
    encoder, _ = run([(3, 5), (5, 2)], rows=2)
    (_, wide, _), (_, tall, swapped) = sorted(encoder.batches, key=lambda batch: batch[2])
    assert wide.tolist() == [[3, 5], [0, 0]] and swapped and tall.tolist() == [[2, 5], [0, 0]]


def test_many_sizes_need_few_programs_and_little_padding():
    grids = photographs(1000, 300)
    assert len(set(grids)) > 250
    encoder, _ = run(grids)
    padded = sum(np.prod(shape[:3]) for shape, _, _ in encoder.batches) / 16
    assert len(encoder.shapes) <= 20
    assert padded <= 1.45 * sum(h * w for h, w in grids)
    assert len(encoder.batches) <= 1.1 * len(grids) / 16


def test_one_size_is_not_padded():
    encoder, _ = run([(9, 11)] * 40)
    assert {shape[1:3] for shape in encoder.shapes} == {(36, 44)} and len(encoder.batches) == 3


def test_a_call_with_one_size_is_not_padded(monkeypatch):
    sides = []
    real = Batcher._batch

    def batch(self, chosen):
        real(self, chosen)
        sides.append(self._smallest(chosen[0].grid))

    monkeypatch.setattr(Batcher, "_batch", batch)
    tokenizer = (parts.GreyTokenizer(), {})
    images = [np.zeros((h * 4, w * 4, 3), np.uint8) for h, w in ((9, 11), (9, 11), (9, 12))]
    vision_codec.encode(tokenizer, images[:2], 8)
    vision_codec.encode(tokenizer, images, 8)
    vision_codec.encode(tokenizer, images[:1], 1, one_size=False)
    assert sides == [(9, 11), (10, 13), (10, 13)]


def test_a_portrait_and_a_landscape_share_a_program():
    encoder, _ = run([(9, 11)] * 16 + [(11, 9)] * 16)
    assert len(encoder.shapes) == 1 and len(encoder.batches) == 2


def test_leftovers_share_batches_of_the_largest():
    encoder, _ = run([(16, 16), (10, 13), (8, 8), (3, 3)])
    assert [shape[1:3] for shape, _, _ in encoder.batches] == [(64, 64)]


def test_other_trailing_axes_are_other_batches():
    shapes, batcher = [], None

    def program(batch, sizes, transposed):
        shapes.append(batch.shape)
        return np.zeros(len(batch))

    batcher, results = Batcher(program, {"image": 4}, (1, 1, 1), None), []
    for channels in (3, 6, 3):
        batcher.add(np.zeros((8, 8, channels), np.uint8), results.append)
    batcher.flush()
    assert sorted(shapes) == [(4, 8, 8, 3), (4, 8, 8, 6)] and len(results) == 3


def test_sides_are_few_and_close():
    sides = [side(n) for n in range(1, 1025)]
    assert all(n <= found for n, found in enumerate(sides, 1)) and sides == sorted(sides)
    assert all(found <= 1.3 * n for n, found in enumerate(sides, 1) if n >= 8)
    octaves = collections.Counter(found.bit_length() for found in set(sides) if found >= 8)
    assert set(octaves.values()) <= {1, 3}  # 1024 is alone in its octave
    assert [side(n) for n in (1, 7, 8, 9, 64, 90, 128)] == [1, 7, 8, 10, 64, 104, 128]


def test_images_of_many_sizes_have_the_codes_and_pixels_of_each_alone():
    """Codes; pixels may differ where rounding meets the border of two values."""
    tokenizer = weights.load_vision_tokenizer(shipped.vision_tokenizer("nano"))
    rng = np.random.default_rng(0)
    images = [
        np.kron(rng.integers(0, 256, (h, w, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        for h, w in ((8, 8), (5, 6), (8, 3))
    ]
    codes = vision_codec.encode(tokenizer, images, 4)
    pixels = vision_codec.decode(tokenizer, codes, 4)
    module, variables = tokenizer
    for one, code, decoded in list(zip(images, codes, pixels, strict=True))[1:]:
        encode = jax.jit(functools.partial(module.apply, variables, method="encode"))
        alone = encode(media.to_model(one[None]))
        np.testing.assert_array_equal(code, alone[0])
        decode = jax.jit(functools.partial(module.apply, variables, method="decode"))
        alone = media.to_uint8(np.asarray(decode(alone))[0])
        assert np.abs(decoded.astype(int) - alone).max() <= 1
        assert np.mean(decoded != alone) < 1e-3


def test_compiling_is_announced_and_counted_once(caplog):
    before = compiling.programs()
    with caplog.at_level(logging.INFO):
        for name in ("a", "a", "b"):
            with compiling.call(("test", name), f"encoding {name}"):
                pass
    assert compiling.programs() == before + 2
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    for number, (line, name) in enumerate(zip(said, "ab", strict=True), before + 1):
        assert line.startswith(f"compiling program {number}, encoding {name}; ")
