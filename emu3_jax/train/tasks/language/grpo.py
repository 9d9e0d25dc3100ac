"""Group-relative policy optimisation (GRPO, arXiv:2402.03300): images that score better than others
that the policy drew for the same prompt become likelier.

Each batch is drawn with the weights that it updates (`rollouts`), and updates them once. The ratio
of policy and drawing policy in GRPO's objective is therefore 1, and clipping it would do nothing:
what is left is the policy gradient, advantage x log-probability, and the divergence from the
reference (`reference_task`).

Log-probabilities are among the visual codes, as images are drawn. All images of a run have the same
number of codes, so means over tokens and sums over images differ by a constant alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding, shipped, vocab
from emu3_jax.data.prompts import read_prompts
from emu3_jax.data.tokens.preference_batches import FIELDS
from emu3_jax.generate.judging import reads_codes
from emu3_jax.interop.bundle import (
    Bundle,
    Language,
    assemble,
    load_language,
    read_vocab,
    with_vision,
)
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.scorers import registry as scorers
from emu3_jax.train import weights
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss, TrainState
from emu3_jax.train.tasks.language.pretrain import LossConfig
from emu3_jax.train.tasks.language.reference_task import (
    REFERENCE,
    PolicyAndReference,
    ReferenceTask,
    check_start,
)
from emu3_jax.train.tasks.language.rollouts import RolloutBatches, RolloutData, Rollouts, check_fits


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """How a policy is updated.

    Attributes:
      beta: weight of the divergence from the reference, in nats per code (T2I-R1: 0.01); 0: none.
    """

    beta: float = 0.01

    def __post_init__(self):
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta must be 0 or more, found {self.beta}")


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """The whole config of the task.

    Attributes:
      model: the transformer. A config may leave out vocab_size: it is then that of
        `start.transformer`. `dropout` is not used.
      data: the prompts, and the rows that are learnt.
      rollouts: how images are drawn and judged.
      run: how to train.
      policy: the loss.
      loss: settings of the cross-entropy, which gives the log-probabilities; z_loss is not used.
      start: the policy and the reference. Vocabulary, text tokenizer and limits are the policy's.
      evaluation: entries to evaluate during training (evaluate.registry).
      task: name of this task in the registry.
    """

    model: TransformerConfig
    data: RolloutData
    rollouts: Rollouts
    run: RunConfig
    policy: PolicyLoss = PolicyLoss()
    loss: LossConfig = LossConfig()
    start: PolicyAndReference = PolicyAndReference()
    evaluation: tuple[dict, ...] = ()
    task: str = "grpo"


class GrpoTask(ReferenceTask):
    """Trains a Transformer on images that it draws; see `rollouts.RolloutBatches` for the arrays.

    Attributes:
      scorers: the judges; () if no data is read.
    """

    Config = GrpoConfig
    headline = ("reward/*", "loss*", "kl", "groups/equal")
    ids_of = "policy"

    def __init__(self, config: GrpoConfig, read_data: bool = True):
        super().__init__(config, read_data)
        self.scorers = ()
        if not read_data:
            return
        config.data.check_groups()
        self._prompts = read_prompts(config.data.prompts)
        check_fits(
            config.data,
            config.rollouts,
            self._prompts,
            self.language.grammar,
            self.language.max_context,
        )
        self.scorers = scorers.make(
            config.rollouts.scorers, lambda index: f"rollouts.scorers[{index}]"
        )
        pixels = [scorer.name for scorer in self.scorers if not reads_codes(scorer)]
        if pixels and not config.rollouts.vision_tokenizer:
            raise ValueError(
                f"rollouts.vision_tokenizer is empty, and {', '.join(pixels)} reads pixels; name "
                "the vision tokenizer of the model's codes"
            )

    @classmethod
    def vocabulary_of(cls, config: GrpoConfig) -> vocab.Vocab:
        """Returns the vocabulary of the policy."""
        check_start(config.start)
        return read_vocab(shipped.language_model(config.start.transformer))

    @classmethod
    def language_of(cls, config: GrpoConfig) -> Language:
        """Returns the language of the policy."""
        check_start(config.start)
        return load_language(shipped.language_model(config.start.transformer))

    def learns(self) -> set[str]:
        """Returns what a model learns from images that it draws for prompts."""
        return {"text_to_image"}

    def loss(
        self, params: Any, model_state: Any, batch: dict, key: jax.Array, step: jax.Array
    ) -> Loss:
        """Returns the sum over codes of -advantage x log p + beta x k3; its weight is their number.

        k3 = exp(d) - d - 1 with d = log reference - log policy is at least zero and, over the
        policy's own draws, has the mean of their divergence (Schulman's third estimator).
        """
        del key, step
        rows, counted = {name: batch[name] for name in FIELDS}, batch["counted"]
        policy = self.row_log_probabilities(params, rows, self._drawable())
        reference = self.row_log_probabilities(model_state[REFERENCE], rows, self._drawable())
        # What is not counted may hold anything.
        log_p = jnp.where(counted > 0, policy, 0.0)
        distance = jnp.where(counted > 0, reference - policy, 0.0)
        k3 = jnp.expm1(distance) - distance
        gain = jnp.sum(batch["advantages"][:, None] * log_p)
        divergence, codes = jnp.sum(k3), jnp.sum(counted)
        metrics = {
            "loss/policy": (-gain, codes),
            "loss/nll": (-jnp.sum(log_p), codes),
            "kl": (divergence, codes),
            **self._judgement(batch),
        }
        return Loss(self.config.policy.beta * divergence - gain, codes, metrics, model_state)

    def _judgement(self, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Returns the metrics of rewards, over the images that have a score."""
        scored = jnp.any(batch["counted"] > 0, axis=-1).astype(jnp.float32)
        count, images = jnp.sum(scored), jnp.asarray(len(scored), jnp.float32)
        equal = jnp.all(batch["deviations"] == 0, axis=-1)
        metrics = {
            "groups/equal": (jnp.sum(scored * equal), count),
            "images/unscored": (images - count, images),
        }
        for index, name in enumerate(self._names()):
            metrics[f"reward/{name}"] = (jnp.sum(scored * batch["rewards"][:, index]), count)
            deviations = batch["deviations"][:, index]
            metrics[f"reward_deviation/{name}"] = (jnp.sum(scored * deviations), count)
        return metrics

    def _names(self) -> list[str]:
        """Returns the names of the scorers; their numbers if none has been made."""
        numbered = map(str, range(len(self.config.rollouts.scorers)))
        return [scorer.name for scorer in self.scorers] or list(numbered)

    def _drawable(self) -> range:
        """Returns the ids that an image is drawn from; all where the vocabulary is not known."""
        size = self.config.model.vocab_size
        known = self.language.vocab if self.language else vocab.released()
        return range(known.visual_start, known.visual_end) if known.size == size else range(size)

    def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of `rollouts.RolloutBatches`."""
        super().abstract_batch(mesh)  # raises if model or rows do not fit
        data, count = self.config.data, len(self.config.rollouts.scorers)
        rows, here = (data.batch_size, data.sequence_length), sharding.batch_sharding(mesh)
        arrays = {n: jax.ShapeDtypeStruct(rows, d, sharding=here) for n, d in FIELDS.items()}
        for name, further in (("advantages", ()), ("rewards", (count,)), ("deviations", (count,))):
            names = ("batch", *(None for _ in further))
            here, shape = NamedSharding(mesh, sharding.partition_spec(*names)), (rows[0], *further)
            arrays[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here)
        return arrays

    def batches(self, mesh: Mesh) -> RolloutBatches:
        """Returns an iterator that draws each batch with the weights that it will update.

        Raises:
          ValueError: the mesh does not fit, or the vision tokenizer is not that of the model.
        """
        self.abstract_batch(mesh)  # raises if the mesh does not fit
        data, rollouts = self.config.data, self.config.rollouts
        dtype, vision, judged_by = self.config.model.dtype, None, rollouts.vision_tokenizer
        if judged_by:
            vision = weights.load_vision_tokenizer(judged_by, mesh=mesh)
            model = assemble(self.model, {}, self.language)
            with_vision(model, *vision, judged_by, self.config.start.transformer)  # raises

        def models(state: TrainState) -> tuple[Bundle, Bundle]:
            variables = {"params": state.params, **state.model_state}
            trained = self.model_variables(self.model_parts(variables))
            policy = self.trained_model(trained, "the policy")
            # Rounded once, as the layers do, and not for each of some thousand tokens.
            drawn_with = jax.tree.map(lambda p: p.astype(dtype), policy.variables)
            policy = dataclasses.replace(policy, variables=drawn_with)
            reader = dataclasses.replace(policy, variables={"params": variables[REFERENCE]})
            if vision is not None:
                reader = dataclasses.replace(reader, vision=vision[0], vision_variables=vision[1])
            return policy, reader

        mine = sharding.rows_here(mesh, data.batch_size)
        grammar = self.language.grammar
        return RolloutBatches(data, rollouts, self._prompts, grammar, self.scorers, models, mine)
