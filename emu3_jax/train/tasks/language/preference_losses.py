"""Losses on pairs of answers, and the rewards they imply: pure functions of log-probabilities.

The meaning is that of TRL 1.10 (`DPOTrainer._compute_loss`), which earlier versions of TRL do not
share: label smoothing counts in `robust` alone (before, `sigmoid` had it too), rewards are beta
times sums of log-ratios in every form (in 0.28 those of `ipo` were per token), and the NLL is the
mean over the counted tokens of all chosen answers of a batch.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emu3_jax.config import check_choice


class LogRatio(NamedTuple):
    """log policy - log reference of one side of P pairs.

    Attributes:
      total: float [P], its sum over the counted tokens.
      tokens: float [P], their number.
    """

    total: jax.Array
    tokens: jax.Array

    def mean(self) -> jax.Array:
        """[P], per counted token."""
        return self.total / self.tokens


def _sigmoid(beta, smoothing, chosen, rejected):
    del smoothing
    return -jax.nn.log_sigmoid(beta * (chosen.total - rejected.total))


def _hinge(beta, smoothing, chosen, rejected):
    del smoothing
    return jax.nn.relu(1 - beta * (chosen.total - rejected.total))


def _ipo(beta, smoothing, chosen, rejected):
    del smoothing
    return jnp.square(chosen.mean() - rejected.mean() - 1 / (2 * beta))


def _robust(beta, smoothing, chosen, rejected):
    margin = beta * (chosen.total - rejected.total)
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return (smoothing * wrong - (1 - smoothing) * right) / (1 - 2 * smoothing)


def _sigmoid_norm(beta, smoothing, chosen, rejected):
    del smoothing
    return -jax.nn.log_sigmoid(beta * (chosen.mean() - rejected.mean()))


FORMS = {
    "sigmoid": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "sigmoid_norm": _sigmoid_norm,
}
# Their beta multiplies means over tokens; that of the others multiplies sums.
PER_TOKEN = ("ipo", "sigmoid_norm")


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """How pairs are scored.

    Attributes:
      beta: how strongly the policy is held to the reference. Of "ipo" and "sigmoid_norm" it
        multiplies log-ratios per token, of the others their sums over an image: b per image is
        b x N per token in an image of N tokens.
      form: "sigmoid" (DPO), "ipo", "hinge", "robust" or "sigmoid_norm".
      label_smoothing: share of pairs that are assumed to be the wrong way round, below 0.5; for
        "robust" only.
      nll_weight: weight of the mean NLL of the counted tokens of the chosen answers.
    """

    beta: float
    form: str = "sigmoid"
    label_smoothing: float = 0.0
    nll_weight: float = 0.0

    def __post_init__(self):
        check_choice("form", self.form, FORMS)
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be above zero, found {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing must be from 0 to below 0.5, found {self.label_smoothing}"
            )
        if self.label_smoothing and self.form != "robust":
            raise ValueError(f"label_smoothing goes with the form robust, not with {self.form}")
        if not 0 <= self.nll_weight < float("inf"):
            raise ValueError(f"nll_weight must be 0 or more, found {self.nll_weight}")

    def of_pairs(self, chosen: LogRatio, rejected: LogRatio) -> jax.Array:
        """Returns the loss of each pair, float [P], without the NLL."""
        return FORMS[self.form](self.beta, self.label_smoothing, chosen, rejected)

    def rewards(self, chosen: LogRatio, rejected: LogRatio) -> dict[str, jax.Array]:
        """Returns name → float [P]: rewards of both sides, margins, accuracies.

        Rewards are beta times sums of log-ratios, whatever the form. A tie counts as a miss.
        """
        ours, theirs = self.beta * chosen.total, self.beta * rejected.total
        return {
            "chosen": ours,
            "rejected": theirs,
            "margins": ours - theirs,
            "accuracies": (ours > theirs).astype(ours.dtype),
        }


def counted_sum(values_PL: jax.Array, mask_PL: jax.Array) -> jax.Array:
    """Returns the sums over counted tokens, [P]; what is not counted may hold anything."""
    return jnp.sum(jnp.where(mask_PL > 0, values_PL, 0), axis=-1)


def log_ratio(policy_PL: jax.Array, reference_PL: jax.Array, mask_PL: jax.Array) -> LogRatio:
    """Returns the log-ratio of one side of P pairs.

    Log-probabilities are subtracted token by token: those of an image of 8,199 tokens sum to some
    60,000 nats, whose float32 has steps of 0.004.

    Args:
      policy_PL, reference_PL: log-probabilities of L tokens.
      mask_PL: above 0 where a token counts.
    """
    tokens = jnp.sum((mask_PL > 0).astype(policy_PL.dtype), axis=-1)
    return LogRatio(counted_sum(policy_PL - reference_PL, mask_PL), tokens)


def chosen_nll(policy_PL: jax.Array, mask_PL: jax.Array) -> jax.Array:
    """Returns the mean of -log p over the counted tokens of all chosen answers, a scalar."""
    tokens = jnp.sum((mask_PL > 0).astype(policy_PL.dtype))
    return -jnp.sum(counted_sum(policy_PL, mask_PL)) / tokens
