"""The interface of evaluators, the files they write, the command, and their models."""

import dataclasses
import json
from typing import ClassVar

import evaluation_stand_ins as parts
import numpy as np
import pytest
import tiny_models
from ml_collections import ConfigDict

from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.evaluate import evaluator, items, language_use, registry
from emu3_jax.evaluate.emoji.retrieval import EmojiRetrieval
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.evaluate.language.likelihood import Likelihood
from emu3_jax.generate import modalities, presets
from emu3_jax.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(evaluator.Evaluator):
    """An evaluator that reports one of everything."""

    measures: ClassVar[str] = "language_model"

    name: str = "counting"

    def run(self, subject):
        """Two metrics, a table, an image, a clip, a note."""
        return Result(
            {"share": 12.5, "missing": float("nan")},
            {"rows": Table(("id", "text"), ((1, 'a "quoted", word'),))},
            {"dot": np.zeros((2, 2, 3), np.uint8)},
            {"film": np.zeros((3, 16, 16, 3), np.uint8)},
            ("a doubt",),
        )


def test_results_are_written_and_read_back(tmp_path):
    results = evaluator.run_all(Subject(language_model=object()), [Counting()])
    path = evaluator.write_results(results, tmp_path, "here", [dict(evaluator="counting")])
    found = json.loads(path.read_text())
    assert found["subject"]["label"] == "here"
    assert found["evaluation"] == [dict(evaluator="counting")]
    entry = found["results"]["counting"]
    assert entry["metrics"]["missing"] is None
    assert (tmp_path / entry["tables"]["rows"]).read_text() == ('id,text\n1,"a ""quoted"", word"\n')
    assert (tmp_path / entry["images"]["dot"]).stat().st_size > 0
    assert evaluator.read_results(tmp_path)["counting"]["share"] == 12.5
    assert media.read_video(tmp_path / entry["clips"]["film"])[0].shape == (3, 16, 16, 3)
    assert entry["notes"] == ["a doubt"]
    files = {"rows.csv", "dot.png", "film.mp4"}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json"} | {
        f"counting_{f}" for f in files
    }
    assert evaluator.flat_metrics(results)["counting/share"] == 12.5
    assert "12.5\n" in evaluator.format_results(results)
    assert "note: a doubt" in evaluator.format_results(results)


def test_a_missing_model_is_an_error_before_the_first_evaluator_runs():
    started = []
    with pytest.raises(ValueError, match="counting measures a language model, and there is none"):
        evaluator.run_all(Subject(), [Counting()], started.append)
    assert not started


def test_every_registered_evaluator_goes_by_its_name():
    needed = {"answers": {"benchmark": "pope"}, "drawings": {"benchmark": "geneval"}}
    made = registry.make(
        [dict(evaluator=name, **needed.get(name, {})) for name in registry.EVALUATORS]
    )
    own = [needed.get(name, {}).get("benchmark", name) for name in registry.EVALUATORS]
    assert [one.name for one in made] == own
    assert [registry.evaluator_name(one) for one in made] == list(registry.EVALUATORS)
    assert {one.measures for one in made} == {"language_model", "vision_tokenizer"}


def test_an_entry_states_some_settings_and_its_record_all():
    entries = (
        dict(evaluator="likelihood", every=10, tokens="t", limit=64, splits=("test",), rows=128),
        dict(evaluator="likelihood", name="train", tokens="t", splits=["train", "text"]),
        dict(evaluator="emoji_retrieval", sampling=dict(seed=7), candidates=2),
    )
    made = registry.make(entries)
    assert made[0] == Likelihood(every=10, tokens="t", limit=64, splits=("test",), rows=128)
    assert made[1].splits == ("train", "text") and made[1].every == 1000
    record = registry.resolved(made)
    for one, entry in zip(made, record, strict=True):
        assert set(entry) == {"evaluator"} | {field.name for field in dataclasses.fields(one)}
    assert registry.make(record) == made
    assert registry.make(json.loads(json.dumps(record))) == made
    config = ConfigDict(dict(evaluation=entries)).lock()
    assert registry.make(config.evaluation) == made


def test_images_are_drawn_as_released_where_an_entry_says_nothing_else():
    sampling = EmojiRetrieval().sampling
    assert dataclasses.asdict(sampling) == dataclasses.asdict(presets.DEMO)
    (other,) = registry.make([dict(evaluator="emoji_retrieval", sampling=dict(guidance=6.0))])
    assert other.sampling == dataclasses.replace(sampling, guidance=6.0)
    assert other.sampling.top_k == 2048


GOOD = dict(evaluator="likelihood", tokens="t")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(every=3), r"evaluation must be a list of entries, dict\(evaluator=NAME, …\), got"),
        (["likelihood"], r"evaluation\[0\] must be a section with the key evaluator, one of recon"),
        ([GOOD, dict(tokens="t")], r"evaluation\[1\] must be a section with the key evaluator"),
        (
            [GOOD, dict(evaluator="likelyhood")],
            r"evaluation\[1\].evaluator: .*'likelyhood' \(did you mean likelihood\?\); known: ",
        ),
        ([dict(GOOD, limt=3)], r"evaluation\[0\].limt does not exist; .* evaluation\[0\].limit\?"),
        ([dict(GOOD, perceptual="x")], r"evaluation\[0\].perceptual does not exist; valid keys"),
        ([dict(GOOD, every="3")], r"evaluation\[0\].every must be of type int, got '3'"),
        ([dict(GOOD, splits="train")], r"evaluation\[0\].splits must be a list, got 'train'"),
        ([dict(GOOD, splits=())], r"evaluation\[0\]: splits must be one or more different names"),
        ([dict(GOOD, limit=-1)], r"evaluation\[0\]: limit must be at least 0, not -1"),
        ([dict(GOOD, batch_size=0)], r"evaluation\[0\]: batch_size must be at least 1, not 0"),
        ([dict(GOOD, name="a/b")], r"evaluation\[0\]: name is made of letters, .* not 'a/b'"),
        ([GOOD, dict(GOOD)], r"evaluation\[1\].name: there are two entries of the name 'like"),
        (
            [dict(evaluator="emoji_retrieval", sampling=dict(topk=3))],
            r"evaluation\[0\].sampling.topk does not exist; did you mean .*sampling.top_k\?",
        ),
        (
            [dict(evaluator="emoji_retrieval", sampling=dict(top_k=-3))],
            r"evaluation\[0\].sampling: top_k must be 0 \(off\) or positive",
        ),
        (
            [dict(evaluator="emoji_retrieval", sampling=dict(temperature=0.0), candidates=4)],
            r"evaluation\[0\]: With temperature 0 all candidates are equal",
        ),
    ],
)
def test_entries_that_cannot_be_used_end_in_one_sentence(entries, message):
    with pytest.raises(ConfigError, match="^" + message) as error:
        registry.make(entries)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    bundle = tiny_models.initial_bundle(codebook_size=64)
    tokenizer = (parts.GreyTokenizer(), {})
    return Subject(language_model=bundle, vision_tokenizer=tokenizer), folder


def test_a_real_model_draws_and_writes(subject):
    subject, folder = subject
    stills = items.Reader().read_images(folder, "validation_combination")
    models, said = (subject.language_model, subject.vision_tokenizer), []
    sampling = EmojiRetrieval().sampling
    options = modalities.Options(sampling=sampling, batch_size=4, progress=said.append)
    drawn = language_use.draw(*models, stills, options)
    assert said[-1] == "decoded: 3 of 3, about 0 s left"
    assert [d.shape for d in drawn] == [(16, 16, 3)] * 3
    assert np.array_equal(drawn, language_use.draw(*models, stills, options))
    written = language_use.caption(
        *models, [item.pixels for item in stills], 4, Progress(said.append)
    )
    assert said[-1].startswith("encoded: 3 of 3")
    assert len(written) == 3
    assert all(isinstance(text, str) for text in written)
