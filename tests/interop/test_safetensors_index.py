"""The index of a checkpoint names files of its own directory only."""

import json

import numpy as np
import pytest
import safetensors.numpy

from emu3_jax.interop.formats.safetensors_io import INDEX_FILE, Tensors


def test_an_index_names_no_file_outside_of_its_directory(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "model").mkdir()
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "model" / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="'../other.safetensors' lies outside of the folder"):
        Tensors(tmp_path / "model")
