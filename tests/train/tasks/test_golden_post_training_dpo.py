"""The losses of preference tuning against TRL; the folder is that of GOLDEN_POST_TRAINING.

Shapes, counts, betas and forms are those of the files, so the same tests read other figures.
"""

import json
import os
import pathlib
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from emu3_jax.data.tokens.preference_batches import PreferenceData, PreferenceEntry
from emu3_jax.interop.formats.safetensors_io import Tensors
from emu3_jax.interop.language import language_model
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.tasks.language.dpo import DpoConfig, DpoTask
from emu3_jax.train.tasks.language.preference_losses import (
    PreferenceLoss,
    chosen_nll,
    log_ratio,
)
from emu3_jax.train.tasks.language.pretrain import LossConfig

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


# -------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def models():
    """(config, params of the policy, params of the reference), float32."""
    config, policy = language_model.load(FOLDER / "dpo" / "policy")
    _, reference = language_model.load(FOLDER / "dpo" / "reference")
    return config, jax.tree.map(jnp.asarray, policy), jax.tree.map(jnp.asarray, reference)


def task_of(config, preference, length):
    data = PreferenceData((PreferenceEntry("unused"),), batch_size=1, sequence_length=length)
    loss = LossConfig(chunk_tokens=32)
    whole = DpoConfig(config, data, RunConfig(steps=1), "bytes", preference, loss)
    return DpoTask(whole, read_data=False)


def end_to_end_batch(mask):
    """The batch of the golden pairs; `mask` is completion_mask or visual_mask."""
    a = golden_arrays("e2e/")

    def both(name):
        return np.stack([a[f"{side}_{name}"] for side in ("chosen", "rejected")], axis=1)

    return {
        "inputs": both("ids")[..., :-1],
        "targets": both("ids")[..., 1:],
        "segment_ids": both("attention_mask")[..., :-1],
        "counted": both(mask)[..., 1:].astype(np.float32),
    }


@pytest.fixture(scope="module")
def log_probabilities(models):
    config, *params = models
    batch = end_to_end_batch("completion_mask")
    task = task_of(config, PreferenceLoss(0.1), batch["inputs"].shape[-1])
    return [np.asarray(jax.jit(task.log_probabilities)(p, batch), np.float64) for p in params]


def test_log_probabilities_are_those_of_the_llama_class(log_probabilities):
    a = golden_arrays("e2e/")
    for found, model in zip(log_probabilities, ("policy", "reference"), strict=True):
        for side, name in enumerate(("chosen", "rejected")):
            counts = a[f"{name}_completion_mask"][:, 1:] > 0
            error = np.abs(found[:, side] - a[f"{model}_logp_{name}"])[counts]
            assert error.max() < 1e-5


def golden_norms(grads, config):
    """The norm of the gradient of each tensor of the files, by its name there."""
    path = FOLDER / "dpo" / "policy"
    pairs, _ = language_model.named_pairs(path, config, Tensors(path))
    flat = flax.traverse_util.flatten_dict(grads)
    norms = {}
    for pair in pairs:
        found = np.asarray(flat[pair.path], np.float64)
        found = found if pair.path[0] != "layers" or pair.layer is None else found[pair.layer]
        norms[pair.name] = np.linalg.norm(found)
    return norms


@pytest.mark.parametrize(
    "form", sorted({name.rpartition("/")[0] for name in FIGURES["end_to_end"]})
)
def test_loss_gradient_and_rewards_of_two_models_are_trls(models, log_probabilities, form):
    config, policy, reference = models
    weight, preference = loss_of(form)
    step = None
    for name, figures in FIGURES["end_to_end"].items():
        if name.rpartition("/")[0] != form:
            continue
        batch, expected = end_to_end_batch(name.rpartition("/")[2]), figures["float64"]
        task = task_of(config, preference, batch["inputs"].shape[-1])
        if step is None:  # masks are data: one program serves all
            step = jax.jit(jax.value_and_grad(_mean_of(task, weight), has_aux=True))
        (loss, metrics), grads = step(policy, reference, batch)
        # The losses of ipo lie around 1 / (2 beta)^2, and so do the errors of its gradient.
        ipo = 1e-6 * abs(expected["loss"]) if form.startswith("ipo") else 0.0
        np.testing.assert_allclose(loss, expected["loss"], rtol=0, atol=ipo or 1e-5)
        norms = golden_norms(grads, config)
        whole = np.sqrt(sum(np.square(list(norms.values()))))
        np.testing.assert_allclose(whole, expected["grad_norm"], rtol=2e-5, atol=ipo)
        for tensor, norm in expected["grad_norms"].items():
            np.testing.assert_allclose(norms[tensor], norm, rtol=2e-5, atol=ipo, err_msg=tensor)
        check_rewards(metrics, expected, 1e-5)
        _check_each_pair(figures["per_pair"], log_probabilities, batch, weight, preference)


def _mean_of(task, weight):
    """(params, reference, batch) -> (loss, rewards); without the preference loss if weight is 0."""

    def mean(params, reference, batch):
        loss = task.loss(params, {"reference": reference}, batch, jax.random.key(0), 0)
        metrics = {k: total / count for k, (total, count) in loss.metrics.items()}
        value = loss.total / loss.weight if weight else metrics["loss/nll"]
        return value, {k.removeprefix("reward/"): v for k, v in metrics.items() if "reward/" in k}

    return mean


def _check_each_pair(expected, log_probabilities, batch, weight, preference):
    policy, reference = log_probabilities
    for i, figures in enumerate(expected):
        mask = batch["counted"][i : i + 1]
        sides = [
            log_ratio(policy[i : i + 1, s], reference[i : i + 1, s], mask[:, s]) for s in (0, 1)
        ]
        nll = chosen_nll(policy[i : i + 1, 0], mask[:, 0])
        loss = weight * preference.of_pairs(*sides)[0] + preference.nll_weight * nll
        scale = max(1.0, abs(figures["loss"]))
        np.testing.assert_allclose(loss, figures["loss"], rtol=0, atol=1e-5 * scale)
        check_rewards(preference.rewards(*sides), figures, 1e-5)
