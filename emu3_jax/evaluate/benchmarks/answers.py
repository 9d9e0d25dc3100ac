"""The evaluator of benchmarks of questions: asks a model all of them, and scores by every rule.

While it runs, each answer is kept in `<name>_items.jsonl` of the results' folder, and a run that
was stopped continues there. At the end the file has one line per item, in order: id, prompt,
image_sizes, answer, truth, and per rule what it read and its score. Figures of a set that is not
whole are an error unless `allow_partial` is set: a missing image must not raise a mean.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from emu3_jax import shipped
from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.data.codec import vision_codec
from emu3_jax.evaluate import items
from emu3_jax.evaluate.benchmarks import asking, registry
from emu3_jax.evaluate.benchmarks.benchmark import Question, QuestionBenchmark, Scored
from emu3_jax.evaluate.benchmarks.benchmark_evaluator import BenchmarkEvaluator
from emu3_jax.evaluate.benchmarks.item_file import ItemFile
from emu3_jax.evaluate.benchmarks.templates import TEMPLATES
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.files import write_atomically
from emu3_jax.generate import codec, modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.interop.bundle import Bundle, Language
from emu3_jax.train.run import distributed

LETTER, LIKELIHOOD = CHOICES = ("letter", "likelihood")
# Questions between two writes, in batches: enough that images of many sizes fill their batches.
BATCHES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(BenchmarkEvaluator):
    """Answers to the questions of a benchmark, scored by the rules of its authors and of harnesses.

    Attributes:
      template: name in `benchmarks.templates.TEMPLATES`: how questions are worded.
      choose: how an option is chosen: "letter", the model writes one; "likelihood", the option's
        text that it finds likeliest, per token, after the question without options.
      min_pixels, max_pixels: limits of an image's area; 0: as the model was trained, else as the
        tokenizer's preprocessor_config.json states, else the released ones.
      judgements: file of a judge's scores of these answers, for benchmarks that need a judge.
      sampling: how answers are drawn; greedy by default.
      max_new: the longest answer in tokens; 0 for the benchmark's own.
    """

    known: ClassVar[Mapping[str, QuestionBenchmark]] = registry.QUESTIONS

    template: str = "llava"
    choose: str = LETTER
    min_pixels: int = 0
    max_pixels: int = 0
    judgements: str = ""
    sampling: Sampling = Sampling(temperature=0.0)
    max_new: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.at_least(max_new=0, min_pixels=0, max_pixels=0)
        self.one_of("template", tuple(TEMPLATES))
        self.one_of("choose", CHOICES)
        if self.judgements and self.of.judging is None:
            raise ValueError(f"judgements: {self.benchmark} needs no judge")

    @functools.cached_property
    def questions(self) -> list[Question]:
        """The questions, read once from the released files."""
        found = self.use("data", lambda data: self.of.read(pathlib.Path(data), self.version))
        if self.choose == LIKELIHOOD:
            without = next((q for q in found if not q.options), None)
            if without is not None:
                raise ConfigError(f"choose=likelihood: question {without.id} has no options")
        return list(found)

    def check(self, language: Language) -> None:
        """Reads all questions, and the judgements."""
        super().check(language)
        questions = self.questions
        if self.judgements:
            self.use("judgements", lambda file: self.of.judging.read(pathlib.Path(file), questions))

    def run(self, subject: Subject) -> Result:
        """Asks every question that has no answer yet, and scores."""
        bundle, whole = subject.language_model, self.questions
        chosen = whole[: self.limit or len(whole)]
        folder = subject.folder if distributed.is_first() else None
        conditions = self._conditions(bundle, whole)
        file = ItemFile(folder, self.name, conditions, subject.replaces)
        file.items = distributed.gather(file.items)[0]
        # An image that was exchanged since is looked at again.
        known = {key: line["image_bytes"] for key, line in file.items.items()}
        waiting = [(n, q) for n, q in enumerate(chosen) if known.get(q.id) != _image_bytes(q)]
        count = subject.progress.counter("questions", len(waiting))
        problems = []
        for part in _parts(waiting, self.batch_size * BATCHES_AT_ONCE):
            lines, failed = self._asked(bundle, part, subject)
            file.add(lines)
            problems += failed
            count(len(part))
        return self._scored(chosen, len(whole), file, problems, folder)

    def _asked(self, bundle: Bundle, part, subject: Subject) -> tuple[list[dict], list[str]]:
        """Lines of the items of (number, question), and what was wrong with the others."""
        images, failed = self._images([q for _, q in part], bundle)
        asked: dict[str, asking.Asked] = {}
        for _, q in part:
            if q.id not in failed:
                try:
                    codes = [images[source][0] for source in q.images]
                    asked[q.id] = self._prompt(bundle, q, codes)
                except ValueError as error:
                    failed[q.id] = str(error)
        part = [(n, q) for n, q in part if q.id in asked]
        questions, numbers = [q for _, q in part], [n for n, _ in part]
        further: list[dict] = [{} for _ in part]
        if self.choose == LIKELIHOOD:
            prompts = list(asked.values())
            args = (bundle, prompts, questions, self.batch_size, subject.progress)
            likelihoods = asking.option_likelihoods(*args)
            answers = [asking.likeliest(one) for one in likelihoods]
            further = [{"likelihoods": one} for one in likelihoods]
        else:
            options = modalities.Options(
                sampling=self.sampling,
                max_new=self.max_new or self.of.max_new,
                batch_size=self.batch_size,
                progress=subject.progress.line,
            )
            labels = [f"question {q.id}" for q in questions]
            answers = asking.answer(bundle, list(asked.values()), options, labels, numbers)
        lines = [
            {
                "id": q.id,
                "prompt": prompt.shown,
                "prompt_tokens": len(prompt.ids),
                "image_sizes": [images[source][1] for source in q.images],
                "image_bytes": _image_bytes(q),
                "answer": text,
            }
            | more
            for q, prompt, text, more in zip(
                questions, asked.values(), answers, further, strict=True
            )
        ]
        return lines, [f"question {key}: {reason}" for key, reason in failed.items()]

    def _prompt(
        self, bundle: Bundle, question: Question, codes: Sequence[np.ndarray]
    ) -> asking.Asked:
        """What the model reads; ValueError if it cannot be asked, such as for its length."""
        by_likelihood = self.choose == LIKELIHOOD
        kind = "long" if by_likelihood else None
        text = TEMPLATES[self.template].text(question, self.benchmark, kind)
        asked = asking.ask(bundle, text, codes)
        asking.check_length(bundle, asked, question.options.values() if by_likelihood else ())
        return asked

    def _images(self, questions: Sequence[Question], bundle: Bundle):
        """Image source → (codes, [height, width]); id of a question → why one cannot be used."""
        sources = list(dict.fromkeys(source for q in questions for source in q.images))
        limits = self._limits(bundle)

        def read(source) -> tuple[np.ndarray | None, str]:
            try:
                return codec.fitted(media.read_image(source), limits), ""
            except ValueError as error:
                return None, str(error)

        found = dict(zip(sources, distributed.map_shared(read, sources), strict=True))
        usable = [source for source in sources if found[source][0] is not None]
        pixels = [found[source][0] for source in usable]
        codes = vision_codec.encode(self.tokenizer, pixels, self.batch_size, one_size=False)
        images = {
            source: (one, list(image.shape[:2]))
            for source, one, image in zip(usable, codes, pixels, strict=True)
        }
        failed = {
            q.id: found[source][1] for q in questions for source in q.images if found[source][1]
        }
        return images, failed

    def _limits(self, bundle: Bundle) -> media.PixelLimits:
        return codec.pixel_limits(
            shipped.vision_tokenizer(self.vision_tokenizer),
            self.tokenizer[0].config.spatial_factor,
            self.min_pixels or None,
            self.max_pixels or None,
            bundle.media,
        )

    def _conditions(self, bundle: Bundle, questions: Sequence[Question]) -> dict[str, Any]:
        return self.conditions(bundle) | {
            "template": self.template,
            "choose": self.choose,
            "sampling": dataclasses.asdict(self.sampling),
            "max_new": self.max_new or self.of.max_new,
            "pixels": dataclasses.asdict(self._limits(bundle)),
            "questions": len(questions),
            "data": _fingerprint(questions),
        }

    def _scored(self, chosen, total: int, file: ItemFile, problems, folder) -> Result:
        answered = [q for q in chosen if q.id in file.items]
        if problems and not self.allow_partial:
            raise ValueError(
                f"{self.name}: {len(problems)} of {len(chosen)} questions could not be asked; "
                f"the first: {problems[0]}; set allow_partial for figures of the others"
            )
        answers = [file.items[q.id]["answer"] for q in answered]
        scored = {name: rule(answered, answers) for name, rule in self.of.rules.items()}
        notes = self._notes(file, len(answered), total, problems)
        if self.of.judging is not None:
            notes += self._judge(answered, answers, scored, folder)
        self._finish(file, answered, scored)
        if folder is not None and self.of.submission and len(answered) == total:
            for name, content in self.of.submission(answered, answers).items():
                write_atomically(folder / f"{self.name}_{name}", content)
        metrics = {
            f"{rule}/{figure}": value
            for rule, one in scored.items()
            for figure, value in one.figures.items()
        }
        notes += [f"{rule}: {note}" for rule, one in scored.items() for note in one.notes]
        tables = {"differences": _differences(answered, answers, scored)}
        counts = {"questions": total, "answered": len(answered)}
        return Result(metrics | counts, tables, notes=notes)

    def _judge(self, answered, answers, scored: dict[str, Scored], folder) -> list[str]:
        """Adds the judge's scores if there are any; else writes what the judge needs."""
        judging = self.of.judging
        if self.judgements:
            judgements = self.use("judgements", lambda f: judging.read(pathlib.Path(f), answered))
            scored["judged"] = judging.rule(answered, answers, judgements)
            return []
        if folder is not None:
            for name, content in judging.write(answered, answers).items():
                write_atomically(folder / f"{self.name}_{name}", content)
        return ["figures that need a judge are left out; its scores are read from judgements=FILE"]

    def _finish(self, file: ItemFile, answered: Sequence[Question], scored: Mapping[str, Scored]):
        def line(at: int, question: Question) -> dict[str, Any]:
            scores = {rule: dataclasses.asdict(one.scores[at]) for rule, one in scored.items()}
            more = {"truth": question.truth, "group": dict(question.group), "scores": scores}
            return file.items[question.id] | more

        file.finish(line(at, question) for at, question in enumerate(answered))

    def _notes(self, file: ItemFile, answered: int, total: int, problems) -> list[str]:
        first = next(iter(file.items.values()), None)
        notes = [] if first is None else [f"template {self.template}; first: {first['prompt']!r}"]
        if self.version:
            notes.append(f"version {self.version}")
        if answered < total:
            notes.append(f"figures of {answered} of {total} questions")
        return notes + [f"left out: {problem}" for problem in problems[: items.LISTED]]


def _parts(waiting: Sequence, size: int) -> Iterator[Sequence]:
    return (waiting[start : start + size] for start in range(0, len(waiting), size))


def _fingerprint(questions: Sequence[Question]) -> str:
    """Twelve hex digits of the ids, texts, options and truths, in order."""
    digest = hashlib.sha256()
    for q in questions:
        plain = [q.id, q.text, q.hint, dict(q.options), q.truth]
        digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()[:12]


def _image_bytes(question: Question) -> list[int]:
    """The sizes of its image files, which tell other images of the same names."""
    return [
        len(image) if isinstance(image, bytes) else pathlib.Path(image).stat().st_size
        for image in question.images
    ]


def _differences(
    questions: Sequence[Question], answers: Sequence[str], scored: Mapping[str, Scored]
) -> Table:
    """The items that the rules score differently."""
    rows = []
    for question, answer, *scores in zip(
        questions, answers, *(one.scores for one in scored.values()), strict=True
    ):
        values = [score.score for score in scores]
        if len(set(values)) > 1:
            rows.append((question.id, answer, json.dumps(question.truth), *values))
    return Table(("id", "answer", "truth", *scored), tuple(rows))
