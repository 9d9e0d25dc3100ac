"""Initial weights of a vision tokenizer: the section `start` of its config."""

import dataclasses
from collections.abc import Callable

from emu3_jax.config import ConfigError
from emu3_jax.interop.vision import movqgan
from emu3_jax.models.vision.quantizers import maintenance
from emu3_jax.models.vision.tokenizer_config import COMPUTATION, VisionTokenizerConfig
from emu3_jax.train import weights
from emu3_jax.train.tasks.vision import codebook_maintenance


@dataclasses.dataclass(frozen=True)
class VisionTokenizerStart:
    """The section `start` of a vision tokenizer: at most one field is set; random weights if none.

    Attributes:
      weights: a run directory, or a directory of a vision tokenizer in a released layout. Its
        config must be the same.
      movqgan: safetensors file of a MoVQGAN of the same 2-D sizes; Emu3's own tokenizer started
        from one. See interop.vision.movqgan for temporal layers and new codes.
    """

    weights: str = ""
    movqgan: str = ""


def initial_weights(
    start: VisionTokenizerStart, model: VisionTokenizerConfig
) -> Callable[[dict], dict] | None:
    """Returns the result of `Task.initial_weights`; None for random weights.

    Raises:
      ConfigError: both fields are set, or the weights have another config.
      ValueError: a file does not fit; one message names everything that differs.
    """
    if start.weights and start.movqgan:
        raise ConfigError("start.weights and start.movqgan exclude each other; set one of them")
    if start.movqgan:
        loaded = movqgan.load(start.movqgan, model)
    elif start.weights:
        module, loaded = weights.load_vision_tokenizer(start.weights)
        computed = {name: getattr(model, name) for name in COMPUTATION}
        if dataclasses.replace(module.config, **computed) != model:
            raise ConfigError(f"start.weights has the config {module.config}, the run has {model}")
    else:
        return None

    def begin(variables: dict) -> dict:
        # Usage counts and the discriminator keep their fresh values.
        params = {**variables["params"], **loaded["params"]}
        found = {**variables, **loaded, "params": params}
        if codebook_maintenance.AVERAGE in variables:
            average = maintenance.start_average(codebook_maintenance.codebook(params))
            found[codebook_maintenance.AVERAGE] = average
        return found

    return begin
