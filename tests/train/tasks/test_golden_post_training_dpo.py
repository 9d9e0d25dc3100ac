"""The losses of preference tuning against TRL; the folder is that of GOLDEN_POST_TRAINING.

Shapes, counts, betas and forms are those of the files, so the same tests read other figures.
"""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from emu3_jax.train.tasks.language.preference_losses import (
    PreferenceLoss,
    chosen_nll,
    log_ratio,
)

FOLDER = pathlib.Path(os.environ.get("GOLDEN_POST_TRAINING", GOLDEN / "post_training"))
FIGURES = json.loads((FOLDER / "dpo.json").read_text())
SMOOTHING = 0.1  # of the figures `robust`


def golden_arrays(prefix):
    with np.load(FOLDER / "dpo.npz") as stored:
        return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def loss_of(name: str) -> tuple[float, PreferenceLoss]:
    """(weight of the preference loss, the loss) of a figure's name, such as ipo/beta_0.1.

    In this version of TRL, label smoothing changes nothing in `sigmoid`; here it is refused.
    """
    form, beta = name.split("/")[:2]
    beta = float(beta.removeprefix("beta_"))
    form = form.removesuffix("_with_label_smoothing")
    if form == "nll":
        return 0.0, PreferenceLoss(beta, nll_weight=1.0)
    if plus := re.fullmatch(r"(\w+)_plus_([\d.]+_)?nll", form):
        weight = float((plus[2] or "1_").rstrip("_"))
        return 1.0, PreferenceLoss(beta, plus[1], nll_weight=weight)
    return 1.0, PreferenceLoss(beta, form, SMOOTHING if form == "robust" else 0.0)


def check_rewards(found, expected, tolerance):
    for name, values in found.items():
        for key, value in (("", np.mean(values)), ("/of_each_pair", values)):
            if (wanted := expected.get(f"rewards/{name}{key}")) is not None:
                np.testing.assert_allclose(value, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("name", FIGURES["fixed"])
def test_fixed_log_probabilities_give_trls_losses(name, dtype, tolerance):
    expected, (weight, loss) = FIGURES["fixed"][name], loss_of(name)
    with jax.enable_x64(dtype == "float64"):
        a = golden_arrays("fixed/")
        a = {k: jnp.asarray(v, dtype if v.dtype.kind == "f" else v.dtype) for k, v in a.items()}
        sides = [
            log_ratio(a[f"policy_{side}"], a[f"reference_{side}"], a[f"mask_{side}"])
            for side in ("chosen", "rejected")
        ]
        each, policy, mask = loss.of_pairs(*sides), a["policy_chosen"], a["mask_chosen"]
        total = weight * each.mean() + loss.nll_weight * chosen_nll(policy, mask)
        nlls = [chosen_nll(policy[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
        each = weight * each + loss.nll_weight * jnp.stack(nlls)
        assert total.dtype == each.dtype == dtype
        scale = max(1.0, abs(expected["loss"])) if dtype == "float32" else 1.0
        np.testing.assert_allclose(total, expected["loss"], rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(
            each, expected["loss_of_each_pair"], rtol=0, atol=tolerance * scale
        )
        check_rewards(loss.rewards(*sides), expected, tolerance)


def test_what_does_not_count_may_be_anything():
    a = golden_arrays("fixed/")
    found = []
    for garbage in (0.0, np.nan):
        policy = np.where(a["mask_chosen"] > 0, a["policy_chosen"], garbage)
        ratio = log_ratio(policy, a["reference_chosen"], a["mask_chosen"])
        found.append((ratio.total, chosen_nll(policy, a["mask_chosen"])))
    np.testing.assert_array_equal(*[f[0] for f in found])
    np.testing.assert_array_equal(*[f[1] for f in found])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(beta=0.0), "beta must be above zero"),
        (dict(beta=float("nan")), "beta must be above zero"),
        (dict(beta=0.1, form="apo"), "form must be one of"),
        (dict(beta=0.1, label_smoothing=0.1), "label_smoothing goes with the form robust"),
        (dict(beta=0.1, form="robust", label_smoothing=0.5), "below 0.5, found 0.5"),
        (dict(beta=0.1, nll_weight=-1.0), "nll_weight must be 0 or more"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PreferenceLoss(**settings)
