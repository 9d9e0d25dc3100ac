"""Progress lines of long work."""

import evaluation_stand_ins as parts
import numpy as np
import pytest

from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.vision import reconstruction
from emu3_jax.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("emu3_jax.progress.time.monotonic", lambda: now[0])
    return now


def test_a_counter_speaks_now_and_then_and_knows_what_is_left(clock):
    said = []
    done = Progress(said.append).counter("decoded", 40)
    for clock[0] in (4.0, 8.0, 12.0, 16.0, 20.0, 24.0):
        done(4)
    assert said == ["decoded: 4 of 40, about 36 s left", "decoded: 16 of 40, about 24 s left"]


def test_the_time_left_is_without_that_of_compiling(clock, monkeypatch):
    said, compiled = [], [5.0]
    monkeypatch.setattr("emu3_jax.compiling.seconds", lambda: compiled[0])
    done = Progress(said.append).counter("decoded", 40)
    clock[0], compiled[0] = 34.0, 35.0  # 30 of the 34 seconds
    done(4)
    assert said == ["decoded: 4 of 40, about 36 s left"]


def test_lines_of_several_share_the_time_between_them(clock):
    said = []
    progress = Progress(said.append)
    progress.line("one")
    progress.counter("two", 2)(1)
    assert said == ["one"]


def test_encoding_and_decoding_count_every_image_once():
    tokenizer = (parts.GreyTokenizer(), {})
    size = tokenizer[0].config.spatial_factor
    images = [np.zeros((size * n, size, 3), np.uint8) for n in (1, 2, 1, 1, 2)]
    counts = []
    codes = vision_codec.encode(tokenizer, images, 2, done=counts.append)
    vision_codec.decode(tokenizer, codes, 2, done=counts.append)
    assert sum(counts) == 2 * len(images) and max(counts) <= 2


def test_reconstruction_tells_how_far_it_is(clock, tmp_path):
    parts.write_corpus(tmp_path)
    said = []
    tokenizer, progress = (parts.GreyTokenizer(), {}), Progress(said.append)
    chosen = items.Reader().read_images(tmp_path, "validation_combination")
    reconstruction.reconstruct(tokenizer, chosen, 1, progress)
    assert said == [f"encoded: 1 of {len(chosen)}, about 0 s left"]
