"""What the evaluators of benchmarks share: which benchmark it is, and whether a part is enough."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import linen as nn

from emu3_jax.config import named
from emu3_jax.evaluate.benchmarks.benchmark import RULES_VERSION
from emu3_jax.evaluate.language_use import CodesEvaluator
from emu3_jax.interop.bundle import Bundle
from emu3_jax.interop.language.weights_fingerprint import weights_fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkEvaluator(CodesEvaluator):
    """An evaluator of a published benchmark.

    Attributes:
      known: name → benchmark.
      name: of the benchmark, if it is not set.
      benchmark: one of `known`.
      data: folder or file of the released data.
      version: of the benchmark, such as a split; "" for the usual one.
      limit: the first this many; a part, which needs `allow_partial`.
      allow_partial: print figures of a part, and say of how many they are.
    """

    known: ClassVar[Mapping[str, Any]] = {}

    name: str = ""
    benchmark: str = ""
    data: str = ""
    version: str = ""
    allow_partial: bool = False

    def __post_init__(self):
        versions = ("", *self.of.versions)
        object.__setattr__(self, "name", self.name or self.benchmark)
        super().__post_init__()
        self.one_of("version", versions)
        if self.limit and not self.allow_partial:
            raise ValueError("limit takes a part of the benchmark; set allow_partial as well")

    @property
    def of(self) -> Any:
        """The benchmark."""
        return named.find("benchmark", self.benchmark, self.known)

    @property
    def headline(self) -> tuple[str, ...]:
        """The figure that papers print."""
        return (self.of.headline,)

    def one_of(self, key: str, values: Sequence[str]) -> None:
        """ValueError if a setting is not one of these."""
        if getattr(self, key) not in values:
            names = ", ".join(map(repr, values))
            raise ValueError(f"{key} must be one of {names}, not {getattr(self, key)!r}")

    def conditions(self, bundle: Bundle) -> dict[str, Any]:
        """What all answers and drawings depend on; JSON."""
        params = nn.meta.unbox(bundle.variables["params"])
        return {
            "benchmark": self.benchmark,
            "version": self.version,
            "weights": weights_fingerprint(params, bundle.vocab.size, "float32"),
            "vision_tokenizer": bundle.vision_fingerprint,
            "rules": RULES_VERSION,
        }
