"""Evaluation inside a run: at its interval, after a stop as well, and never without its data."""

import dataclasses
import os
import signal
from collections.abc import Callable
from typing import ClassVar

import evaluation_stand_ins as parts
import numpy as np
import pytest
import tiny_models
from token_records import GRAMMAR, image_record, write_dataset
from toy_task import ToyTask, run_config

from emu3_jax import vocab
from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.evaluate import registry
from emu3_jax.evaluate.during_training import EvaluationCallback, check_data
from emu3_jax.evaluate.evaluator import Evaluator, Result, Subject
from emu3_jax.interop.bundle import Language
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.sequence import Grammar
from emu3_jax.train.loop import train
from emu3_jax.train.run.metrics import read_metrics


class Killed(BaseException):
    """What nobody catches: the process is gone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stub(Evaluator):
    """Reports the sum of the weights; `before` happens in the middle of its work."""

    measures: ClassVar[str] = "language_model"

    name: str = "stub"
    before: Callable[[int], None] = lambda step: None
    steps: list = dataclasses.field(default_factory=list)

    def run(self, subject):
        step = int(subject.label.rpartition(" ")[2])
        self.before(step)
        self.steps.append(step)
        value = float(subject.language_model["dense"]["kernel"].sum())
        return Result({"sum": value}, images={"dot": np.full((2, 2, 3), step, np.uint8)})


def _run(workdir, *stubs, steps=5):
    """The toy task, saved in every second step and evaluated by each stub at its interval."""
    callbacks = [
        EvaluationCallback(
            stub,
            lambda state, label: Subject(language_model=state.evaluation_params(), label=label),
            workdir,
        )
        for stub in stubs
    ]
    return train(ToyTask(), run_config(steps=steps, every=2), workdir, callbacks=callbacks)


def _log(workdir):
    """Step → (training loss, evaluated sum)."""
    rows = read_metrics(workdir)
    return {row["step"]: (row["loss"], row.get("validation/stub/sum")) for row in rows}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, _run(workdir, Stub(every=2))


def test_numbers_and_images_come_at_the_interval_and_after_the_last_step(unbroken):
    workdir, state = unbroken
    log = _log(workdir)
    assert [step for step, (_, value) in log.items() if value is not None] == [2, 4, 5]
    assert log[5][1] == float(state.params["dense"]["kernel"].sum()) != log[4][1]
    images = sorted(p.relative_to(workdir) for p in workdir.glob("images/*/*"))
    assert [str(p) for p in images] == [f"images/step_00000{n}/stub_dot.png" for n in (2, 4, 5)]
    assert (media.read_image(workdir / images[1]) == 4).all()


@pytest.mark.parametrize("step", [4, 5], ids=["on the way", "after the last step"])
def test_a_killed_evaluation_is_done_when_the_run_resumes(unbroken, tmp_path, step):
    def kill(at):
        if at == step:
            raise Killed

    with pytest.raises(Killed):
        _run(tmp_path, Stub(every=2, before=kill))
    with pytest.raises(Killed):  # and once more, while it is made up for
        _run(tmp_path, Stub(every=2, before=kill))
    again = Stub(every=2)
    _run(tmp_path, again)
    assert again.steps == [n for n in (4, 5) if n >= step]
    assert _log(tmp_path) == _log(unbroken[0])


def test_an_evaluation_before_which_the_run_was_stopped(unbroken, tmp_path):
    def stop(at):
        if at == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # seen when step 2 is done

    first, again = Stub(every=1, before=stop), Stub(every=2)
    _run(tmp_path, first)
    _run(tmp_path, again)
    assert first.steps == [1] and again.steps == [2, 4, 5]
    assert {k: v for k, v in _log(tmp_path).items() if k > 1} == {
        k: v for k, v in _log(unbroken[0]).items() if k > 1
    }


def test_what_is_done_is_not_done_again(tmp_path):
    _run(tmp_path, Stub(every=2), steps=4)
    again = Stub(every=2)
    _run(tmp_path, again, steps=4)
    _run(tmp_path, again, steps=5)
    assert again.steps == [5]


def test_each_entry_has_its_interval_and_its_name(tmp_path):
    often, last = Stub(every=2), Stub(every=0, name="last")
    _run(tmp_path, often, last)
    assert often.steps == [2, 4, 5] and last.steps == [5]
    final = read_metrics(tmp_path)[-1]
    assert final["validation/stub/sum"] == final["validation/last/sum"]
    assert (tmp_path / "images/step_000005/last_dot.png").is_file()


@pytest.mark.parametrize("killed", ["stub", "last"])
def test_only_the_entry_that_was_killed_is_done_again(tmp_path, killed):
    def kill(step):
        if step == 5:
            raise Killed

    stubs = [Stub(every=2), Stub(every=2, name="last")]
    broken = [dataclasses.replace(s, before=kill if s.name == killed else s.before) for s in stubs]
    with pytest.raises(Killed):
        _run(tmp_path, *broken)
    again = [dataclasses.replace(stub, steps=[]) for stub in stubs]
    _run(tmp_path, *again)
    assert [stub.steps for stub in again] == [[5] if killed == "stub" else [], [5]]


# ----------------------------------------------------------------------------------- its data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """corpus/ with all splits, half/ without `train`, tokens/, other/ of another vocabulary, and
    vision/, a vision tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("corpus", "half"):
        (folder / name).mkdir()
        parts.write_corpus(folder / name)
    (folder / "half" / "train.jsonl").unlink()
    other = Grammar(vocab.small(GRAMMAR.tokenizer.size, 200), GRAMMAR.tokenizer)
    write_dataset(folder / "tokens", [image_record()])
    write_dataset(folder / "other", [image_record()], other)
    tiny_models.save_vision_tokenizer(folder / "vision")
    return folder


LANGUAGE = Language(GRAMMAR.vocab, GRAMMAR, "v1", 64)
RECONSTRUCTION = dict(evaluator="reconstruction")
LIKELIHOOD = dict(evaluator="likelihood")
CAPTIONS = dict(evaluator="emoji_captions", data="corpus", vision_tokenizer="vision")


@pytest.fixture
def check(folder, monkeypatch):
    """check_data of entries whose paths are in `folder`."""
    monkeypatch.chdir(folder)

    def check(language, *entries):
        trained = "language_model" if language else "vision_tokenizer"
        check_data(registry.make(entries), trained, language)

    return check


def test_data_that_is_enough(folder, check):
    check(None, RECONSTRUCTION | dict(data="half"), dict(evaluator="codebook_health", data="half"))
    fingerprint = vision_fingerprint(*tokenizer_files.load(folder / "vision"))
    check(LANGUAGE, LIKELIHOOD | dict(tokens="tokens"))
    check(dataclasses.replace(LANGUAGE, vision_fingerprint=fingerprint), CAPTIONS)
    check(dataclasses.replace(LANGUAGE, vision_fingerprint=None), CAPTIONS)


@pytest.mark.parametrize(
    ("language", "entry", "message"),
    [
        (LANGUAGE, LIKELIHOOD, "tokens is not set; likelihood needs it"),
        (LANGUAGE, LIKELIHOOD | dict(tokens="gone"), "tokens='gone' cannot be used by likelihood"),
        (LANGUAGE, LIKELIHOOD | dict(tokens="other"), "tokens='other' .*made with the vocabulary"),
        (None, RECONSTRUCTION | dict(data="gone"), "data='gone' .*no split 'validation'"),
        (None, RECONSTRUCTION | dict(data="half", splits=("test",)), "data='half' .*'test'"),
        (
            None,
            RECONSTRUCTION | dict(data="half", perceptual="gone.pth"),
            "perceptual='gone.pth' cannot be used by reconstruction",
        ),
        (None, dict(evaluator="codebook_health", data="gone"), "data='gone' .*holds no split"),
        (
            None,
            dict(evaluator="codebook_health", data="half", earlier="gone"),
            "earlier='gone' cannot be used by codebook_health",
        ),
        (None, dict(evaluator="frechet", data="half"), "perceptual is not set, nor inception"),
        (
            None,
            dict(evaluator="frechet", data="half", i3d="gone.pt"),
            "i3d='gone.pt' cannot be used by frechet",
        ),
        (LANGUAGE, CAPTIONS | dict(data="half"), "data='half' .*no split 'train'"),
        (LANGUAGE, CAPTIONS | dict(vision_tokenizer=""), "vision_tokenizer is not set"),
        (LANGUAGE, CAPTIONS | dict(vision_tokenizer="gone"), "vision_tokenizer='gone' cannot"),
        (LANGUAGE, CAPTIONS, "vision_tokenizer='vision' .*: it is the .* was trained with v1"),
        (
            None,
            LIKELIHOOD | dict(tokens="tokens"),
            "evaluator: likelihood measures a language model, and this run trains a vision token",
        ),
        (
            LANGUAGE,
            RECONSTRUCTION | dict(data="corpus"),
            "evaluator: reconstruction measures a vision tokenizer, and this run trains a language",
        ),
    ],
)
def test_data_that_is_missing_is_named_by_its_key(check, language, entry, message):
    good = LIKELIHOOD | dict(tokens="tokens") if language else RECONSTRUCTION | dict(data="half")
    with pytest.raises(ConfigError, match=rf"^evaluation\[1\]\.{message}") as error:
        check(language, good | dict(name="good"), entry)
    assert "\n" not in str(error.value)
