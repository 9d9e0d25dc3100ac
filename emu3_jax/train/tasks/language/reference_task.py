"""What tasks share that hold a policy to a reference: the model as it was before.

The policy is trained. The reference is a frozen copy in the compute dtype, sharded as the policy
and in no checkpoint: a resumed run reads it again, and refuses one of other weights. Dropout is off
in both, whatever the model's config states: the two must differ by their weights alone.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from etils import epath

from emu3_jax import sharding, shipped
from emu3_jax.config import ConfigError
from emu3_jax.files import read_json, write_json
from emu3_jax.interop.bundle import UnknownVocabularyError, check_same_language, load_language
from emu3_jax.interop.language.weights_fingerprint import weights_fingerprint
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.train.tasks.language import transformer_start
from emu3_jax.train.tasks.language.pretrain import PretrainTask
from emu3_jax.train.tasks.language.transformer_start import TransformerStart

REFERENCE_FILE = "reference.json"
REFERENCE = "reference"  # the collection of a frozen copy


@dataclasses.dataclass(frozen=True)
class PolicyAndReference:
    """Where the two models come from; both have all token ids of the data.

    Attributes:
      transformer: the policy's weights: a run directory, a directory in BAAI's or the -hf layout,
        or the name of a shipped model. "" only if nothing is trained (ahead-of-time compilation).
      reference: the weights of the reference, likewise; "" for those of `transformer`.
    """

    transformer: str = ""
    reference: str = ""


class ReferenceTask(PretrainTask):
    """A policy and its reference; `config.start` is a PolicyAndReference.

    A task without a frozen copy (its log-probabilities are stored) leaves it out of `unsaved`.

    Attributes:
      ids_of: what the policy's ids must agree with, in messages.
    """

    unsaved = (REFERENCE,)
    ids_of: ClassVar[str] = "data"

    def __init__(self, config: Any, read_data: bool = True):
        super().__init__(config, read_data)
        self._reference: dict[str, str] = {}  # what the run directory says, or what was loaded

    def init(self, key: jax.Array) -> Any:
        """Initialises the policy; a frozen reference is a copy."""
        variables = super().init(key)
        if REFERENCE not in self.unsaved:
            return variables
        return {**variables, REFERENCE: copy_of(variables["params"], self.config.model.dtype)}

    def initial_weights(self) -> Callable[[dict], dict]:
        """Returns the weights that the section `start` names, for policy and reference."""
        start = self.config.start
        check_start(start)
        policy = self.weights_at(start.transformer)
        if REFERENCE not in self.unsaved:
            return policy
        other = self.weights_at(start.reference) if start.reference else None

        def begin(variables: dict) -> dict:
            params = policy({"params": variables["params"]})["params"]
            reference = params if other is None else other(variables)["params"]
            self.check_reference(reference)
            # Copies: the update donates the policy's buffers.
            copies = copy_of(reference, self.config.model.dtype)
            return {"params": params, REFERENCE: copies}

        return begin

    def weights_at(self, path: str) -> Callable[[dict], dict]:
        """Returns the function that puts all weights at `path` into params."""
        model = self.config.model
        folder = shipped.language_model(path)
        try:
            check_same_language(load_language(folder), self.language, f"{folder}", self.ids_of)
        except UnknownVocabularyError:
            pass  # weights alone: their number of ids is all that can be checked
        start = TransformerStart(path, shared_ids=model.vocab_size)
        return transformer_start.initial_weights(start, model, (), self.language)

    def check_reference(self, params: Any) -> str:
        """Returns the fingerprint; ValueError if the run began with another reference."""
        found = weights_fingerprint(params, self.config.model.vocab_size, "float32")
        began = self._reference.setdefault("began", found)
        if began != found:
            where = self.config.start.reference or self.config.start.transformer
            raise ValueError(
                f"the run began with a reference of the weights {began}, but {where} now holds "
                f"{found}; put the first ones back, or begin another run"
            )
        return found

    def row_log_probabilities(self, params: Any, rows: dict, ids: range) -> jax.Array:
        """Returns log p of each target among the token ids `ids`, float32 [R, S], with a gradient.

        Targets outside `ids` get any number.

        Args:
          params: of the policy or of the reference.
          rows: "inputs", "targets", "segment_ids" int32 and "counted" float32, [R, S] each.
          ids: all ids, or a range of them that alone can be drawn, such as the visual ones.
        """
        rows = {name: sharding.constrain(a, "batch", "sequence") for name, a in rows.items()}
        positions = jnp.broadcast_to(jnp.arange(rows["inputs"].shape[-1]), rows["inputs"].shape)
        x_BSD = self.model.apply(
            {"params": params}, rows["inputs"], positions, rows["segment_ids"], method="hidden"
        )
        kernel_DV, targets = params["lm_head"]["kernel"], rows["targets"]
        if len(ids) < self.config.model.vocab_size:
            # Whole columns for every device that shares the vocabulary.
            ways = sharding.ways_of(jax.sharding.get_abstract_mesh(), "vocab")
            # Dynamic: jax 0.10 cannot add the gradient of a static slice in place (micro-batches).
            kernel_DV = jax.lax.dynamic_slice_in_dim(kernel_DV, ids.start, len(ids), axis=1)
            kernel_DV = jnp.pad(kernel_DV, [(0, 0), (0, -len(ids) % ways)])
            kernel_DV = sharding.constrain(kernel_DV, "embed", "vocab")
            targets = jnp.clip(targets - ids.start, 0, len(ids) - 1)
        result = chunked_cross_entropy(
            x_BSD,
            kernel_DV,
            targets,
            rows["counted"],
            vocab_size=len(ids),
            chunk_tokens=self.config.loss.chunk_tokens,
            unroll=self.config.loss.unroll,
        )
        return -result.nll

    def flops_per_unit(self) -> float:
        """Returns model FLOPs per token: as in pretraining, and a frozen reference's pass."""
        return super().flops_per_unit() * (4 / 3 if REFERENCE in self.unsaved else 1)

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


def check_start(start: PolicyAndReference) -> None:
    """ConfigError if no policy is named."""
    if not start.transformer:
        raise ConfigError(
            "start.transformer is empty; preferences tune a model that draws already: name its run "
            "directory or its weights"
        )


def copy_of(params: Any, dtype: str) -> Any:
    """Returns params in buffers of their own, in `dtype`, to which the layers round them anyway."""
    return jax.tree.map(lambda p: jnp.array(p, dtype, copy=True), params)
