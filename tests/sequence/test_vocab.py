"""The token space: the released layout id by id, small layouts, visual ids, names, fingerprint."""

import dataclasses

import numpy as np
import pytest

from emu3_jax import vocab as vocab_lib
from emu3_jax.vocab import Vocab


def test_released_layout():
    v = vocab_lib.released()
    assert (v.size, v.text_size, v.codebook_size) == (184622, 151643, 32768)
    roles = {role: getattr(v, role) for role in vocab_lib.ROLES}
    assert roles == {
        "pad": 151643,
        "eol": 151846,
        "eof": 151847,
        "bos": 151849,
        "eos": 151850,
        "img": 151851,
        "boi": 151852,
        "eoi": 151853,
    }
    assert (v.visual_start, v.visual_end) == (151854, 184622)


def test_small_layout_uses_every_id_once():
    v = vocab_lib.small(300, 64)
    roles = sorted(getattr(v, role) for role in vocab_lib.ROLES)
    assert roles == list(range(300, 308))
    assert (v.visual_start, v.visual_end, v.size) == (308, 372, 372)
    assert v.is_text(np.arange(-1, v.size + 1)).sum() == 300
    assert v.is_visual(np.arange(-1, v.size + 1)).sum() == 64


def test_codes_and_ids_are_inverse_and_guarded():
    v = vocab_lib.small(256, 16)
    codes = np.arange(16).reshape(4, 4)
    ids = v.visual_ids(codes)
    assert ids.dtype == np.int32 and ids.min() == v.visual_start and ids.max() == v.size - 1
    np.testing.assert_array_equal(v.codes(ids), codes)
    assert v.visual_ids(np.zeros((0,), int)).shape == (0,)
    for wrong in (-1, 16):
        with pytest.raises(ValueError, match=rf"code {wrong} is outside 0\.\.15"):
            v.visual_ids([0, wrong])
    for wrong in (v.visual_start - 1, v.visual_end):
        with pytest.raises(ValueError, match="not a visual token"):
            v.codes([v.visual_start, wrong])


def test_names():
    v = vocab_lib.released()
    assert v.name(151852) == "BOI (id 151852)"
    assert v.name(17) == "text token 17"
    assert v.name(151854 + 12) == "visual code 12 (id 151866)"
    assert v.name(151644) == "unused id 151644"
    assert "outside" in v.name(184622) and "outside" in v.name(-1)


def test_fingerprint_is_of_the_layout():
    v = vocab_lib.released()
    assert v.fingerprint == Vocab.from_dict(v.to_dict()).fingerprint == "88b5671d413b"
    others = [
        dataclasses.replace(v, eol=v.eof, eof=v.eol),
        dataclasses.replace(v, codebook_size=32767),
        vocab_lib.small(256, 64),
        vocab_lib.small(256, 65),
        vocab_lib.small(257, 64),
    ]
    assert len({v.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_bad_layouts_are_refused():
    v = vocab_lib.small(256, 64)
    with pytest.raises(ValueError, match="pad and bos share the id 256"):
        dataclasses.replace(v, bos=256)
    with pytest.raises(ValueError, match="role eoi has the id 5"):
        dataclasses.replace(v, eoi=5)
    with pytest.raises(ValueError, match="role eoi has the id 270"):
        dataclasses.replace(v, eoi=270)
    with pytest.raises(ValueError, match="visual_start is 200"):
        dataclasses.replace(v, visual_start=200)
    with pytest.raises(ValueError, match="codebook_size >= 1"):
        vocab_lib.small(256, 0)
    values = v.to_dict()
    values["eop"] = values.pop("eof")
    with pytest.raises(ValueError, match=r"missing keys \['eof'\], unknown keys \['eop'\]"):
        Vocab.from_dict(values)


def test_placeholder_of_an_image():
    assert vocab_lib.released().placeholder() == 151646
    layout = vocab_lib.small(16, 16)
    with pytest.raises(ValueError, match="All 40 ids of this vocabulary are in use"):
        layout.placeholder()
    with_room = dataclasses.replace(layout, visual_start=layout.visual_start + 1)
    assert with_room.placeholder() == 24
