"""The benchmark of a GPU, on small models here: its JSON, its section, and what goes wrong."""

import dataclasses
import json
import os
import subprocess

import jax
import jax.numpy as jnp
import pytest
from paths import ROOT

from benchmarks.gpu import attention_error, card, drawing, run_all
from benchmarks.gpu.section import section
from emu3_jax.aot.compile_and_report import program_of
from emu3_jax.config import load_config
from emu3_jax.models.language.attention_kernels.choice import IMPLEMENTATIONS

SIZES = attention_error.Sizes(2, 96, 4, 2, 16)


def test_a_dry_run_measures_every_part(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    run_all.main(["--tiny", f"--output={file}"])
    found = json.loads(file.read_text())
    assert not [part for part in found["parts"].values() if "error" in part]
    names = ["sequential", "sequential int8", "jacobi 4", "jacobi 4 int8", "attention", "training"]
    assert list(found["parts"]) == names and found["tiny"]
    for name in names[:4]:
        part = found["parts"][name]
        assert part["window"] == (4 if "jacobi" in name else 1)
        assert (part["seconds"] is None) == ("jacobi" in name)
    assert found["parts"]["attention"]["right"]
    first, *_, last = found["parts"]["training"]["losses"]
    assert last < first  # the same batch again
    printed = capsys.readouterr().out
    assert printed.endswith(section(found)) and "figures mean nothing" in printed


def test_times_at_both_ends_of_an_image_are_integrated():
    config = load_config(str(ROOT / "configs/emu3_8b_stage1.py"))
    config.model.update(run_all.TINY)
    measured = {"bandwidth": 1e9, "peak": 1e30}
    how = dict(points=2, passes=2, repeats=1)
    found = drawing.measure(config, jax.devices()[0], measured, **how)
    first, last = found["points"]
    assert (first["token"], last["token"]) == (0, 7938) and last["slots"] == 10_272
    # A third of all tokens read in each of the first three stages; the last is reached at the end.
    share = (found["ms"] - first["ms"]) / (last["ms"] - first["ms"])
    assert share == pytest.approx(0.38, abs=0.01)
    assert found["seconds"] == pytest.approx(8193 * found["ms"] / 1e3)
    program = program_of(config, "sample", {})
    assert found["floor_ms"] == pytest.approx(program.floor_bytes(jax.devices()[:1]) / 1e6)


def test_the_weights_are_made_in_their_own_types():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for shape, dtype, name in [((300, 40), jnp.int8, "kernel"), ((300, 40), jnp.bfloat16, "k")]:
        made = drawing._random(name, shape, jnp.dtype(dtype), here)(3)
        assert made.dtype == dtype and made.shape == shape
        scale = drawing._random(f"{name}_scale", (1, 1), jnp.dtype("float32"), here)(3)
        factor = scale[0, 0] if dtype == jnp.int8 else 1
        assert 0.018 < float(factor * jnp.std(made.astype(jnp.float32))) < 0.022


def test_a_part_that_fails_leaves_a_sentence_and_late_parts_are_not_begun(tmp_path, monkeypatch):
    def fails(*args, **keywords):
        raise MemoryError("RESOURCE_EXHAUSTED: out of memory\nand much more")

    parts = {"one": fails, "two": lambda: {"ms": 1.0}}
    monkeypatch.setattr(run_all, "parts", lambda *args: parts)
    file = tmp_path / "a" / "gpu.json"
    found = run_all.run(run_all.SMALL, file, budget_s=1e9)
    assert found["parts"]["two"] == {"ms": 1.0} and json.loads(file.read_text()) == found
    assert found["parts"]["one"] == {"error": "MemoryError: RESOURCE_EXHAUSTED: out of memory"}
    found = run_all.run(run_all.SMALL, file, budget_s=1e-9)
    assert all(part["error"].startswith("not begun: ") for part in found["parts"].values())
    assert section(found).count("- Not measured: ") == 2


def test_all_parts_of_a_card_are_there():
    names = list(run_all.parts(run_all.Scale(), jax.devices()[0], {}))
    assert names[:2] == ["sequential", "sequential int8"] and len(names) == 13
    assert sum(name.startswith("jacobi") for name in names) == 6
    scale = dataclasses.replace(run_all.Scale(), windows=(8,), changes=())
    assert len(run_all.parts(scale, jax.devices()[0], {})) == 7


@pytest.mark.parametrize("kernel", ["reference", "blockwise", "triangle"])
def test_kernels_are_within_the_derived_tolerance(kernel):
    found = attention_error.measure(SIZES, jax.devices()[0], kernel, repeats=1)
    assert found["right"] and min(found["shares"].values()) > 0.05


def _late(q, k, v, segment_ids, *_):
    """Sees one token of each document too few."""
    return IMPLEMENTATIONS["reference"](q, jnp.roll(k, 1, axis=1), v, segment_ids)


def _coarse(q, k, v, segment_ids, *_):
    """Rounds the result once too often, to seven bits."""
    out = IMPLEMENTATIONS["reference"](q, k, v, segment_ids)
    return out.astype(jnp.float8_e4m3fn).astype(out.dtype)


def _stopped(q, k, v, segment_ids, *_):
    """Has no gradient of the keys."""
    return IMPLEMENTATIONS["reference"](q, jax.lax.stop_gradient(k), v, segment_ids)


@pytest.mark.parametrize("kernel", [_late, _coarse, _stopped])
def test_wrong_kernels_are_found(kernel, monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "wrong", kernel)
    assert not attention_error.measure(SIZES, jax.devices()[0], "wrong", repeats=1)["right"]


def test_bandwidths_are_those_of_the_longest_name():
    assert card.bandwidth("NVIDIA H100 80GB HBM3") == 3.35e12
    assert card.bandwidth("NVIDIA H100 PCIe") == 2e12
    assert card.bandwidth("NVIDIA H200 NVL") == card.bandwidth("NVIDIA H200") == 4.8e12
    assert card.bandwidth("NVIDIA T4") is None


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "JAX sees no GPU here, only cpu:0; --tiny runs on any machine"),
        (["--budget_s=0"], "--budget_s=0.0 must be above 0 seconds"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        run_all.main(options)
    assert message in capsys.readouterr().err.splitlines()[-1]


FAKE_PYTHON = """#!/usr/bin/env bash
# An interpreter that is READY or not; prints what it runs.
if [[ "$1" == -c ]]; then
    [[ "$2" != *gpu.run_all* ]] || { echo "It is blue" >&2; exit READY; }
else
    echo "NAME: $*"
fi
"""


@pytest.mark.parametrize("ready, name", [("0", "own"), ("1", "made")])
def test_an_interpreter_that_has_all_is_used_as_it_is(ready, name, tmp_path):
    for path, own, code in [("own", "own", ready), ("venv/bin/python", "made", "1")]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        text = FAKE_PYTHON.replace("READY", code).replace("NAME", own)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    result = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), "--tiny"],
        capture_output=True,
        text=True,
        env={**os.environ, "VENV": str(tmp_path / "venv"), "PYTHON": str(tmp_path / "own")},
        check=True,
    )
    assert result.stdout.splitlines()[-1] == f"{name}: -m benchmarks.gpu.run_all --tiny"
    for line in ("own is not ready: It is blue", "made: -m pip install"):
        assert (line in result.stdout) == (name == "made")
