"""One shard of prompts to preference pairs: draw, score, rank; reproducible to the byte."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.prompts import Prompt
from emu3_jax.data.tokens.preference_pairs import PREFERENCE, documents_of
from emu3_jax.data.tokens.records import Counts, Record, Shard, ShardWriter
from emu3_jax.generate import modalities
from emu3_jax.generate.judging import score_codes
from emu3_jax.interop.bundle import Bundle
from emu3_jax.preferences.preferences_config import PreferencesConfig
from emu3_jax.preferences.ranking import pairs_of
from emu3_jax.scorers.scorer import Scorer
from emu3_jax.sequence import Image, Text
from emu3_jax.tokenize.shard_results import ShardResult


@dataclasses.dataclass
class Drawn:
    """The candidates of one prompt.

    Attributes:
      prompt: what they were drawn for.
      first: number of the first candidate among all answers of the model.
      codes: int32 [h, w] each.
      scores_SN: float32, NaN where a scorer has none.
      reasons: candidate → why it is left out.
    """

    prompt: Prompt
    first: int
    codes: Sequence[np.ndarray]
    scores_SN: np.ndarray
    reasons: dict[int, str]


class PairMaker:
    """Makes the shards of a dataset of pairs: `make(i)` for any i below `len(self)`, in any order.

    Args:
      config: what to make.
      prompts: in order.
      bundle: the model, with its vision tokenizer.
      label: what the model is called in the records.
      scorers: what compares the candidates.
    """

    def __init__(
        self,
        config: PreferencesConfig,
        prompts: Sequence[Prompt],
        bundle: Bundle,
        label: str,
        scorers: Sequence[Scorer],
    ):
        self.config, self.bundle, self.label = config, bundle, label
        self.folder, self.grammar = Path(config.output), bundle.grammar
        self.items_per_shard = config.prompts_per_shard * config.candidates
        self._prompts = prompts
        self._scorers = scorers
        size = (config.height, config.width)
        self._new = len(self.grammar.visual_layout("image", 1, *size))
        self._negative = len(self.grammar.image_prompt(config.negative_prompt, *size))

    def __len__(self) -> int:
        return -(-len(self._prompts) // self.config.prompts_per_shard)

    def plan(self) -> dict[str, Any]:
        """What the bytes of the dataset depend on."""
        return {
            "vocabulary": self.grammar.vocab.fingerprint,
            "text_tokenizer": self.grammar.tokenizer.fingerprint,
            "vision_tokenizer": vision_fingerprint(
                self.bundle.vision.config, self.bundle.vision_variables
            ),
            "video_format": self.grammar.video_format,
            "raw_shards": len(self),
            "model": self.label,
            **self.config.recipe(),
            **self.bundle.media,
        }

    def make(self, index: int, item_done: Callable[[], None]) -> ShardResult:
        """Draws and scores the candidates of one shard and writes its pairs."""
        del item_done  # they are counted with their shard
        start = index * self.config.prompts_per_shard
        prompts = self._prompts[start : start + self.config.prompts_per_shard]
        result = ShardResult(len(prompts) * self.config.candidates, [], {}, [])
        fitting = [prompt for prompt in prompts if self._fits(prompt, result)]
        drawn = self._drawn(fitting, start * self.config.candidates)
        records = [record for one in drawn for record in self._records(one, result)]
        for record in records:
            lengths = [
                self.grammar.document_length(d) for d in documents_of(PREFERENCE, record.segments)
            ]
            result.counts[PREFERENCE] = result.counts.get(PREFERENCE, Counts()) + Counts.of(lengths)
        if records:
            name = f"{PREFERENCE}-{index:05d}-of-{len(self):05d}.array_record"
            with ShardWriter(self.folder / name) as writer:
                for record in records:
                    writer.write(record)
            result.shards.append(Shard(name, PREFERENCE, len(records)))
        return result

    def _fits(self, prompt: Prompt, result: ShardResult) -> bool:
        """Whether the model can read the prompt with its image; else it is listed as skipped."""
        limit, problem = self.bundle.max_context, ""
        try:
            length = len(
                self.grammar.image_prompt(prompt.text, self.config.height, self.config.width)
            )
        except ValueError as error:
            problem = str(error)
        else:
            guided = self.config.sampling.guided
            read = max(length, self._negative if guided else 0) + self._new - 1
            if limit is not None and read > limit:
                problem = f"{read} tokens are read with its image, more than the context of {limit}"
        if problem:
            result.skipped.append(_skipped(prompt, prompt.key, problem))
        return not problem

    def _drawn(self, prompts: Sequence[Prompt], first: int) -> list[Drawn]:
        n, config = self.config.candidates, self.config
        texts = [prompt.text for prompt in prompts for _ in range(n)]
        options = modalities.Options(
            config.sampling, config.negative_prompt, first=first, batch_size=config.batch_size
        )
        size = (config.height, config.width)
        codes = modalities.draw_images(self.bundle, texts, [size] * len(texts), options)
        found = score_codes(self.bundle, self._scorers, texts, codes)
        drawn = []
        for i, prompt in enumerate(prompts):
            here = slice(i * n, (i + 1) * n)
            reasons = {
                at - here.start: reason
                for one in reversed(found)
                for at, reason in one.reasons.items()
                if here.start <= at < here.stop
            }
            scores_SN = np.stack([one.values_N[here] for one in found])
            drawn.append(Drawn(prompt, first + here.start, codes[here], scores_SN, reasons))
        return drawn

    def _records(self, drawn: Drawn, result: ShardResult) -> list[Record]:
        """The pairs of one prompt; candidates that are left out are listed as skipped."""
        prompt, reasons, seen = drawn.prompt, dict(drawn.reasons), {}
        for i, codes in enumerate(drawn.codes):
            same = seen.setdefault(codes.tobytes(), i)
            if same != i:
                reasons.setdefault(i, f"it has the codes of candidate {same}")
        result.skipped += [
            _skipped(prompt, f"{prompt.key}/{i}", reason) for i, reason in sorted(reasons.items())
        ]
        left = [i for i in range(len(drawn.codes)) if i not in reasons]
        pairs = pairs_of(drawn.scores_SN[:, left], self.config.pairs) if len(left) > 1 else []
        if not pairs:
            why = "all of one rank, expected two that differ" if len(left) > 1 else "expected two"
            reason = f"no pair: {len(left)} of its {len(drawn.codes)} candidates are left, {why}"
            result.skipped.append(_skipped(prompt, prompt.key, reason))
        return [self._record(drawn, left[better], left[worse]) for better, worse in pairs]

    def _record(self, drawn: Drawn, chosen: int, rejected: int) -> Record:
        prompt, sides = drawn.prompt, {"chosen": chosen, "rejected": rejected}
        names = [scorer.name for scorer in self._scorers]
        scores = {
            side: dict(zip(names, map(float, drawn.scores_SN[:, i]), strict=True))
            for side, i in sides.items()
        }
        numbers = {side: drawn.first + i for side, i in sides.items()}
        origin = {"model": self.label, "seed": self.config.sampling.seed, **numbers}
        text = Text(prompt.text, ids=np.array(self.grammar.text_ids(prompt.text), np.int32))
        segments = (text, Image(drawn.codes[chosen]), Image(drawn.codes[rejected]))
        key = f"{prompt.key}/{chosen}-{rejected}"
        attributes = {"scores": scores, "source": origin}
        return Record(key, Path(self.config.prompts).stem, PREFERENCE, segments, attributes)


def _skipped(prompt: Prompt, key: str, reason: str) -> dict[str, str]:
    return {"key": key, "where": prompt.where, "reason": reason}
