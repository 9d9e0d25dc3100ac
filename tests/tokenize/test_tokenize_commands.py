"""The commands of emu3_jax.tokenize: what they ask for, and what an interruption leaves."""

import subprocess
import sys

import numpy as np

from emu3_jax.data import media

INTERRUPTED = """
import runpy, sys
import numpy as np

def save(file, array):
    with open(file, "wb") if not hasattr(file, "write") else file as stream:
        stream.write(b"half")
    raise KeyboardInterrupt

np.save = save
runpy.run_module("emu3_jax.tokenize.reconstruct", run_name="__main__", alter_sys=True)
"""


def run(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_tokenize_without_a_config_is_one_sentence():
    result = run("-m", "emu3_jax.tokenize")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: --config is needed")


def test_reconstruct_never_leaves_half_a_file(tmp_path):
    media.write_png(tmp_path / "still.png", np.full((16, 16, 3), 200, np.uint8))
    out = tmp_path / "out"
    options = (f"--input={tmp_path / 'still.png'}", f"--output={out}")
    weights = "--vision_tokenizer=assets/vision_tokenizer_nano"
    result = run("-c", INTERRUPTED, *options, weights, "--min_pixels=256", "--max_pixels=256")
    assert result.returncode == 130, result.stderr
    assert list(out.iterdir()) == []
