"""What a vision tokenizer begins as: the section `start` of its config. Absent: random weights."""

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
    """The section `start` of a vision tokenizer; at most one of the two is set.

    Attributes:
      weights: a run directory of ours, or a directory of a vision tokenizer in a released layout,
        of the same config.
      movqgan: safetensors file with the weights of a MoVQGAN of the same 2-D sizes, which Emu3's
        own tokenizer began as; see interop.vision.movqgan for the layers in time and new codes.
    """

    weights: str = ""
    movqgan: str = ""


def initial_weights(
    start: VisionTokenizerStart, model: VisionTokenizerConfig
) -> Callable[[dict], dict] | None:
    """What the section asks for, as `Task.initial_weights`; None for random weights.

    Raises:
      ConfigError: settings that exclude each other, or weights of another config.
      ValueError: a file that does not fit; one message names everything that differs.
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
        # What is counted while training begins anew, and so does the discriminator.
        params = {**variables["params"], **loaded["params"]}
        found = {**variables, **loaded, "params": params}
        if codebook_maintenance.AVERAGE in variables:
            average = maintenance.start_average(codebook_maintenance.codebook(params))
            found[codebook_maintenance.AVERAGE] = average
        return found

    return begin
