"""Direct preference optimisation: of two images for one caption, the chosen becomes likelier.

"Likelier" is meant relative to a reference, the model as it was before, so that the policy does not
drift away from it (`reference_task`). The log-probability of an image is that of its counted tokens
(`data.counted`) given the caption.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding
from emu3_jax.data.tokens.preference_batches import FIELDS, PairBatches, Pairs, PreferenceData
from emu3_jax.generate.scoring import rows_of_batch
from emu3_jax.models.cpu import options_to_run_once
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.train.initial_state import replaced
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss
from emu3_jax.train.tasks.language.preference_losses import (
    PER_TOKEN,
    PreferenceLoss,
    chosen_nll,
    log_ratio,
)
from emu3_jax.train.tasks.language.pretrain import LossConfig
from emu3_jax.train.tasks.language.reference_task import (
    REFERENCE,
    PolicyAndReference,
    ReferenceTask,
    check_start,
    copy_of,
)
from emu3_jax.train.tasks.language.stored_log_probabilities import complete


@dataclasses.dataclass(frozen=True)
class PolicyStart(PolicyAndReference):
    """Where policy and reference come from.

    Attributes:
      log_probabilities: a file with the reference's log-probability of each image, best beside the
        dataset. What is missing in it is computed before training, with the reference alone on the
        devices. "": the reference is a frozen copy, and reads every batch.
    """

    log_probabilities: str = ""


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """The whole config of the task.

    Attributes:
      model: the transformer. A config may leave out vocab_size: it is then that of the data.
        `dropout` is not used.
      data: the pairs, and the batches.
      run: how to train.
      text_tokenizer: the tokenizer of the data, as in pretraining.
      preference: the loss of a pair.
      loss: settings of the cross-entropy, which gives the log-probabilities; z_loss is not used.
      start: the policy and the reference.
      evaluation: entries to evaluate during training (evaluate.registry).
      task: name of this task in the registry.
    """

    model: TransformerConfig
    data: PreferenceData
    run: RunConfig
    text_tokenizer: str
    preference: PreferenceLoss
    loss: LossConfig = LossConfig()
    start: PolicyStart = PolicyStart()
    evaluation: tuple[dict, ...] = ()
    task: str = "dpo"


class DpoTask(ReferenceTask):
    """Trains a Transformer on pairs; see data.tokens.preference_batches for the arrays.

    Unless its log-probabilities are stored, the reference is a frozen copy.
    """

    Config = DpoConfig
    headline = ("loss*", "reward/accuracies", "reward/margins", "kl")

    def __init__(self, config: DpoConfig, read_data: bool = True):
        super().__init__(config, read_data)
        self.unsaved = () if config.start.log_probabilities else (REFERENCE,)
        self.note = _beta_in_words(config)

    def log_probabilities(self, params: Any, batch: dict) -> jax.Array:
        """Returns log p of each target, float32 [pairs, 2, sequence_length]; it has a gradient."""
        shape = batch["inputs"].shape
        rows = {name: batch[name].reshape(-1, shape[-1]) for name in FIELDS}
        ids = range(self.config.model.vocab_size)
        return self.row_log_probabilities(params, rows, ids).reshape(shape)

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Returns the mean loss of the pairs, plus the weighted NLL of their chosen images.

        With micro-batches the NLL is averaged per micro-batch, as TRL does.
        """
        del key, step
        preference, counted = self.config.preference, batch["counted"]
        policy = self.log_probabilities(params, batch)
        if REFERENCE in model_state:
            reference = self.log_probabilities(model_state[REFERENCE], batch)
        else:  # only sums are stored: each token gets an equal part
            tokens = jnp.sum(counted, axis=-1)
            reference = (batch["reference"] / tokens)[..., None]
        chosen, rejected = (
            log_ratio(policy[:, side], reference[:, side], counted[:, side]) for side in (0, 1)
        )
        each = preference.of_pairs(chosen, rejected)
        pairs = jnp.asarray(len(each), jnp.float32)
        total = jnp.sum(each)
        nll = chosen_nll(policy[:, 0], counted[:, 0])
        if preference.nll_weight:
            total += pairs * preference.nll_weight * nll
        metrics = {
            f"reward/{name}": (jnp.sum(values), pairs)
            for name, values in preference.rewards(chosen, rejected).items()
        }
        tokens = jnp.sum(chosen.tokens + rejected.tokens)
        metrics |= {
            "loss/preference": (jnp.sum(each), pairs),
            "loss/nll": (nll * jnp.sum(chosen.tokens), jnp.sum(chosen.tokens)),
            "kl": (jnp.sum(chosen.total + rejected.total), tokens),
        }
        return Loss(total, pairs, metrics, model_state)

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of `data.tokens.preference_batches.PairBatches`."""
        super().abstract_batch(mesh)  # raises if model or rows do not fit
        data = self.config.data
        here = NamedSharding(mesh, sharding.partition_spec("batch", None, "sequence"))
        shape = (data.batch_size, 2, data.sequence_length)
        arrays = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
            for name, dtype in FIELDS.items()
        }
        if REFERENCE not in self.unsaved:
            sides = NamedSharding(mesh, sharding.partition_spec("batch", None))
            arrays["reference"] = jax.ShapeDtypeStruct(shape[:2], jnp.float32, sharding=sides)
        return arrays

    def batches(self, mesh: Mesh) -> PairBatches:
        """Returns an iterator that reads only this process's pairs of the global batch.

        What is missing of stored log-probabilities is computed first.
        """
        self.abstract_batch(mesh)  # raises if the mesh does not fit
        data, grammar = self.config.data, self.language.grammar
        mine, pairs = sharding.rows_here(mesh, data.batch_size), Pairs(data, grammar)
        stored = None if REFERENCE in self.unsaved else self._stored(mesh, pairs)
        return PairBatches(data, grammar, mine, pairs, stored)

    def _stored(self, mesh: Mesh, pairs: Pairs) -> dict[str, float]:
        """Returns the reference's log-probability of every answer, by key."""
        start, model, data = self.config.start, self.config.model, self.config.data
        check_start(start)
        where = start.reference or start.transformer
        initial = super().init  # of the policy alone, without adapters
        layout = sharding.abstract_arrays(jax.eval_shape(initial, jax.random.key(0)), mesh)
        create = jax.jit(
            lambda key: nn.unbox(dict(initial(key))),
            out_shardings=jax.tree.map(lambda x: x.sharding, layout),
            compiler_options=options_to_run_once(mesh),
        )
        take = self.weights_at(where)
        params = replaced(create(jax.random.key(0)), take)["params"]
        weights = f"{self.check_reference(params)} in {model.dtype}"
        params = copy_of(params, model.dtype)
        scorer = jax.jit(lambda p, batch: sharding.gathered(self.log_probabilities(p, batch)))

        def score(arrays: dict) -> np.ndarray:
            batch = {n: sharding.spread(a, "batch", None, "sequence") for n, a in arrays.items()}
            return np.asarray(scorer(params, batch))

        # As many rows at a time as a micro-batch has, which fit.
        count = rows_of_batch(mesh, data.batch_size // self.config.run.accumulation)
        shape, pad = (count, data.sequence_length), self.language.vocab.pad
        return complete(start.log_probabilities, weights, where, pairs, score, shape, pad)

    def units_per_batch(self) -> int:
        """Returns the positions in one batch, of both images and with padding."""
        return 2 * super().units_per_batch()


def _beta_in_words(config: DpoConfig) -> str:
    """Returns a line that states beta in both units, for an image that fills its row."""
    beta, tokens = config.preference.beta, config.data.sequence_length
    image, token = beta, beta * tokens
    if config.preference.form in PER_TOKEN:
        image, token = beta / tokens, beta
    return (
        f"beta {image:.3g} per image: on means over tokens {token:.3g}, if an image fills its row "
        f"of {tokens}"
    )
