"""Direct preference optimisation: of two images for one caption, the chosen becomes likelier.

"Likelier" is meant relative to a reference, the model as it was before, so that the policy does not
drift away from it. The log-probability of an image is that of its counted tokens (`data.counted`)
given the caption. Dropout is off in both passes, whatever the model's config states: the two must
differ by their weights alone.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from emu3_jax import sharding, shipped
from emu3_jax.config import ConfigError
from emu3_jax.data.tokens.preference_batches import FIELDS, PairBatches, Pairs, PreferenceData
from emu3_jax.files import read_json, write_json
from emu3_jax.generate.scoring import rows_of_batch
from emu3_jax.interop.bundle import UnknownVocabularyError, check_same_language, load_language
from emu3_jax.models.cpu import options_to_run_once
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.train.initial_state import replaced
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.task import Loss
from emu3_jax.train.tasks.language import transformer_start
from emu3_jax.train.tasks.language.preference_losses import (
    PER_TOKEN,
    PreferenceLoss,
    chosen_nll,
    log_ratio,
)
from emu3_jax.train.tasks.language.pretrain import LossConfig, PretrainTask
from emu3_jax.train.tasks.language.reference_fingerprint import reference_fingerprint
from emu3_jax.train.tasks.language.stored_log_probabilities import complete
from emu3_jax.train.tasks.language.transformer_start import TransformerStart

REFERENCE_FILE = "reference.json"
REFERENCE = "reference"  # the collection of a frozen copy


@dataclasses.dataclass(frozen=True)
class PolicyStart:
    """Where the two models come from; both have all token ids of the data.

    Attributes:
      transformer: the policy's weights: a run directory, a directory in BAAI's or the -hf layout,
        or the name of a shipped model. "" only if nothing is trained (ahead-of-time compilation).
      reference: the weights of the reference, likewise; "" for those of `transformer`.
      log_probabilities: a file with the reference's log-probability of each image, best beside the
        dataset. What is missing in it is computed before training, with the reference alone on the
        devices. "": the reference is a frozen copy, and reads every batch.
    """

    transformer: str = ""
    reference: str = ""
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


class DpoTask(PretrainTask):
    """Trains a Transformer on pairs; see data.tokens.preference_batches for the arrays.

    Unless its log-probabilities are stored, the reference is a frozen copy in the compute dtype. It
    is the collection "reference" of the model state: sharded as the policy, not in checkpoints.
    """

    Config = DpoConfig
    headline = ("loss*", "reward/accuracies", "reward/margins", "kl")

    def __init__(self, config: DpoConfig, read_data: bool = True):
        super().__init__(config, read_data)
        self.unsaved = () if config.start.log_probabilities else (REFERENCE,)
        self.note = _beta_in_words(config)
        self._reference: dict[str, str] = {}  # what the run directory says, and what was loaded

    def init(self, key: jax.Array) -> Any:
        """Initialises the policy; a frozen reference is a copy."""
        variables = super().init(key)
        if REFERENCE not in self.unsaved:
            return variables
        return {**variables, REFERENCE: _copy(variables["params"], self.config.model.dtype)}

    def initial_weights(self) -> Callable[[dict], dict]:
        """Returns the weights that the section `start` names, for policy and reference."""
        start = self.config.start
        if not start.transformer:
            raise ConfigError(
                "start.transformer is empty; preferences tune a model that draws already: name "
                "its run directory or its weights"
            )
        policy = self._from(start.transformer)
        if REFERENCE not in self.unsaved:
            return policy
        other = self._from(start.reference) if start.reference else None

        def begin(variables: dict) -> dict:
            params = policy({"params": variables["params"]})["params"]
            reference = params if other is None else other(variables)["params"]
            self._check_reference(reference)
            # Copies: the update donates the policy's buffers.
            copies = _copy(reference, self.config.model.dtype)
            return {"params": params, REFERENCE: copies}

        return begin

    def _from(self, path: str) -> Callable[[dict], dict]:
        """Returns the function that puts all weights at `path` into params."""
        c = self.config
        folder = shipped.language_model(path)
        try:
            check_same_language(load_language(folder), self.language, f"{folder}", "data")
        except UnknownVocabularyError:
            pass  # weights alone: their number of ids is all that can be checked
        start = TransformerStart(path, shared_ids=c.model.vocab_size)
        return transformer_start.initial_weights(start, c.model, c.data.mixture, self.language)

    def _check_reference(self, params: Any) -> str:
        """Returns the fingerprint; ValueError if the run began with another reference."""
        found = reference_fingerprint(params, self.config.model.vocab_size)
        began = self._reference.setdefault("began", found)
        if began != found:
            where = self.config.start.reference or self.config.start.transformer
            raise ValueError(
                f"the run began with a reference of the weights {began}, but {where} now holds "
                f"{found}; put the first ones back, or begin another run"
            )
        return found

    def log_probabilities(self, params: Any, batch: dict) -> jax.Array:
        """Returns log p of each target, float32 [pairs, 2, sequence_length]; it has a gradient."""
        shape = batch["inputs"].shape
        rows = {name: batch[name].reshape(-1, shape[-1]) for name in FIELDS}
        rows = {name: sharding.constrain(a, "batch", "sequence") for name, a in rows.items()}
        x_BSD = self.model.apply(
            {"params": params},
            rows["inputs"],
            jnp.broadcast_to(jnp.arange(shape[-1]), rows["inputs"].shape),
            rows["segment_ids"],
            method="hidden",
        )
        result = chunked_cross_entropy(
            x_BSD,
            params["lm_head"]["kernel"],
            rows["targets"],
            rows["counted"],
            vocab_size=self.config.model.vocab_size,
            chunk_tokens=self.config.loss.chunk_tokens,
            unroll=self.config.loss.unroll,
        )
        return -result.nll.reshape(shape)

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
        where = start.reference or start.transformer
        layout = sharding.abstract_arrays(jax.eval_shape(self.init, jax.random.key(0)), mesh)
        create = jax.jit(
            lambda key: nn.unbox(dict(self.init(key))),
            out_shardings=jax.tree.map(lambda x: x.sharding, layout),
            compiler_options=options_to_run_once(mesh),
        )
        take = self._from(where) if where else self.initial_weights()
        params = replaced(create(jax.random.key(0)), take)["params"]
        weights = f"{self._check_reference(params)} in {model.dtype}"
        params = _copy(params, model.dtype)
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

    def flops_per_unit(self) -> float:
        """Returns model FLOPs per token: as in pretraining, and a frozen reference's pass."""
        return super().flops_per_unit() * (4 / 3 if self.unsaved else 1)

    def model_parts(self, variables: dict) -> dict:
        """Returns the policy alone."""
        return {"params": variables["params"]}

    def save_beside(self, run_directory: os.PathLike) -> None:
        """Also writes which reference the run began with."""
        super().save_beside(run_directory)
        write_json(
            epath.Path(run_directory) / REFERENCE_FILE, {"weights": self._reference["began"]}
        )

    def check_beside(self, run_directory: os.PathLike) -> None:
        """The ids must mean what they meant, and the reference must be the same when it is read."""
        super().check_beside(run_directory)
        stored = read_json(epath.Path(run_directory) / REFERENCE_FILE)
        self._reference["began"] = stored["weights"]


def _copy(params: Any, dtype: str) -> Any:
    """Returns params in buffers of their own, in `dtype`, to which the layers round them anyway."""
    return jax.tree.map(lambda p: jnp.array(p, dtype, copy=True), params)


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
