"""docs/how_to/pods.md: its figures follow from the model and the chips, and its files exist."""

import re

import pytest
from paths import ROOT

from emu3_jax.models.language.transformer import released
from emu3_jax.train.run.metrics import PEAK_FLOPS

TEXT = (ROOT / "docs/how_to/pods.md").read_text()
PROSE = " ".join(TEXT.split())
KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite"}


def flops_per_token(length):
    """6 per matmul weight, and the causal half of attention."""
    c = released()
    layer = 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads)
    layer += 3 * c.hidden_size * c.intermediate_size
    matmul = c.num_layers * layer + c.hidden_size * c.vocab_size
    return 6 * (matmul + length * c.num_heads * c.head_dim * c.num_layers)


def test_the_flops_are_those_of_the_model():
    for length in (5120, 131072):
        assert f"{flops_per_token(length):.3e} at S = {length:,}".replace("e+", "e") in PROSE


@pytest.mark.parametrize("chip", KINDS)
def test_the_cost_table(chip):
    (row,) = re.findall(rf"^\| {chip} \|(.*)\|$", TEXT, re.MULTILINE)
    peak, mfu, *costs = [float(cell.strip(" %").replace(",", "")) for cell in row.split("|")]
    assert peak * 1e12 == PEAK_FLOPS[KINDS[chip]]
    for length, (hours, days) in ((5120, costs[:2]), (131072, costs[2:])):
        exact = 1e12 * flops_per_token(length) / (peak * 1e12 * mfu / 100) / 3600
        assert hours == round(exact) and days == round(exact / 256 / 24, 1)


def test_what_a_host_reads():
    need = 256 * PEAK_FLOPS["TPU v5p"] * 0.6 / flops_per_token(5120)
    assert f"{need / 64:,.0f} per host" in PROSE


def test_the_files_it_names_exist():
    named = set(
        re.findall(r"\b((?:launch|configs|benchmarks)/\w+\.\w+|requirements-\w+\.txt)", TEXT)
    )
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / name).is_file()]
