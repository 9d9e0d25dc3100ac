"""The decoders by name."""

from emu3_jax.generate.decoding.decoders.adaptive_zipar import AdaptiveZipar
from emu3_jax.generate.decoding.decoders.decoder import Decoder
from emu3_jax.generate.decoding.decoders.jacobi import Jacobi
from emu3_jax.generate.decoding.decoders.sequential import Sequential
from emu3_jax.generate.decoding.decoders.zipar import Zipar

DECODERS = {
    "sequential": Sequential,
    "jacobi": Jacobi,
    "zipar": Zipar,
    "adaptive_zipar": AdaptiveZipar,
}


def make(name: str, window: int | None = None) -> Decoder:
    """The decoder of a name with its window, or with its default one.

    Raises:
      ValueError: there is no such decoder, or it has no such window.
    """
    if name not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, not {name!r}.")
    if window is None:
        return DECODERS[name]()
    if name == "sequential":
        raise ValueError(
            f"window={window} is of another decoder: sequential commits one token at a time."
        )
    return DECODERS[name](window)
