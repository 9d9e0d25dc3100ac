"""How tokens are drawn: the settings of one call."""

import dataclasses
import math

from emu3_jax.generate.decoding.decoders import registry


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: scores are divided by it; 0 takes the best token (greedy).
      top_k: only the k best scores (and ties with the k-th) stay; 0 keeps all.
      top_p: only the smallest set of tokens whose probability reaches p stays; 1 keeps all.
      guidance: scale of classifier-free guidance; 1 switches it off and runs no second branch.
      seed: seed of all draws; the same seed and request give the same tokens.
      attend_negative_padding: the official scripts give the unconditional branch no attention mask.
        If negative prompts of a batch differ in length, the shorter ones attend to the padding
        before them. True does the same. False: padding is never attended to.
      decoder: the name of a decoder, which says how many tokens a forward pass commits: one
        (sequential), a run of them with the same law (jacobi), or one of several rows of an image
        at once, which is an approximation (zipar, adaptive_zipar). docs/explanation/decoding.md
        explains each.
      window: tokens that a forward pass reads (jacobi), or that the row above must be ahead (zipar;
        adaptive_zipar: at the least); None: the decoder's default.
      whole_vocabulary: the official scripts put no constraint on texts, so an answer may contain
        control tokens and codes, which are left out when it is decoded. True does the same. False:
        texts are drawn from text tokens and EOS.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0
    attend_negative_padding: bool = False
    whole_vocabulary: bool = False
    decoder: str = "sequential"
    window: int | None = None

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance must be at least 0 (1 is off), not {self.guidance}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, not {self.seed}.")
        registry.make(self.decoder, self.window)

    @property
    def greedy(self) -> bool:
        """True when no randomness is used."""
        return self.temperature == 0

    @property
    def guided(self) -> bool:
        """True when a second, unconditional branch is computed."""
        return self.guidance != 1
