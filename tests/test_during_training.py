"""Evaluation inside a run: at its interval, after a stop as well, and never without its data."""

import os
import signal

import evaluation_stand_ins as parts
import numpy as np
import pytest
from test_records import GRAMMAR, image_record, write_dataset
from toy_task import ToyTask, run_config

from emu3_jax import vocab
from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.evaluate import registry
from emu3_jax.evaluate.during_training import EvaluationCallback, EvaluationConfig, check_data
from emu3_jax.evaluate.evaluator import Result, Subject
from emu3_jax.interop.bundle import Language
from emu3_jax.sequence import Grammar
from emu3_jax.train.loop import train
from emu3_jax.train.metrics import read_metrics


class Killed(BaseException):
    """What nobody catches: the process is gone."""


class Stub:
    """Reports the sum of the weights; `before` happens in the middle of its work."""

    name, needs = "stub", {}

    def __init__(self, before=lambda step: None):
        self.before, self.steps = before, []

    def run(self, subject):
        step = int(subject.label.rpartition(" ")[2])
        self.before(step)
        self.steps.append(step)
        value = float(subject.bundle["dense"]["kernel"].sum())
        return Result({"sum": value}, pictures={"dot": np.full((2, 2, 3), step, np.uint8)})


def _run(monkeypatch, workdir, stub, steps=5, every=2):
    """The toy task, saved and evaluated in every second step."""
    monkeypatch.setitem(registry.EVALUATORS, "stub", lambda: stub)
    callback = EvaluationCallback(
        EvaluationConfig(every=every, evaluators=("stub",)),
        lambda state, label: Subject(bundle=state.evaluation_params(), label=label),
        workdir,
    )
    return train(ToyTask(), run_config(steps=steps, every=2), workdir, callbacks=[callback])


def _log(workdir):
    """Step → (training loss, evaluated sum)."""
    rows = read_metrics(workdir)
    return {row["step"]: (row["loss"], row.get("validation/stub/sum")) for row in rows}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        state = _run(patch, workdir, Stub())
    return workdir, state


def test_numbers_and_pictures_come_at_the_interval_and_after_the_last_step(unbroken):
    workdir, state = unbroken
    log = _log(workdir)
    assert [step for step, (_, value) in log.items() if value is not None] == [2, 4, 5]
    assert log[5][1] == float(state.params["dense"]["kernel"].sum()) != log[4][1]
    pictures = sorted(p.relative_to(workdir) for p in workdir.glob("pictures/*/*"))
    assert [str(p) for p in pictures] == [f"pictures/step_00000{n}/stub_dot.png" for n in (2, 4, 5)]
    assert (media.read_image(workdir / pictures[1]) == 4).all()


@pytest.mark.parametrize("step", [4, 5], ids=["on the way", "after the last step"])
def test_a_killed_evaluation_is_done_when_the_run_resumes(unbroken, tmp_path, monkeypatch, step):
    def kill(at):
        if at == step:
            raise Killed

    with pytest.raises(Killed):
        _run(monkeypatch, tmp_path, Stub(kill))
    with pytest.raises(Killed):  # and once more, while it is made up for
        _run(monkeypatch, tmp_path, Stub(kill))
    again = Stub()
    _run(monkeypatch, tmp_path, again)
    assert again.steps == [n for n in (4, 5) if n >= step]
    assert _log(tmp_path) == _log(unbroken[0])


def test_an_evaluation_before_which_the_run_was_stopped(unbroken, tmp_path, monkeypatch):
    def stop(at):
        if at == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # seen when step 2 is done

    first, again = Stub(stop), Stub()
    _run(monkeypatch, tmp_path, first, every=1)
    _run(monkeypatch, tmp_path, again)
    assert first.steps == [1] and again.steps == [2, 4, 5]
    assert {k: v for k, v in _log(tmp_path).items() if k > 1} == {
        k: v for k, v in _log(unbroken[0]).items() if k > 1
    }


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    _run(monkeypatch, tmp_path, Stub(), steps=4)
    again = Stub()
    _run(monkeypatch, tmp_path, again, steps=4)
    _run(monkeypatch, tmp_path, again, steps=5)
    assert again.steps == [5]


# ----------------------------------------------------------------------------------- its data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """corpus/ with all splits, half/ without `train`, tokens/, and other/ of another vocabulary."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("corpus", "half"):
        (folder / name).mkdir()
        parts.write_corpus(folder / name)
    (folder / "half" / "train.jsonl").unlink()
    other = Grammar(vocab.small(GRAMMAR.tokenizer.size, 200), GRAMMAR.tokenizer)
    write_dataset(folder / "tokens", [image_record()])
    write_dataset(folder / "other", [image_record()], other)
    return folder


LANGUAGE = Language(GRAMMAR.vocab, GRAMMAR, "v1", 64)
CAPTIONS = dict(evaluators=("emoji_captions",), vision_tokenizer="somewhere")


def _config(folder, **fields):
    for name in ("data", "tokens"):
        if name in fields:
            fields[name] = str(folder / fields[name])
    return EvaluationConfig(**fields)


@pytest.mark.parametrize(
    ("language", "fields"),
    [
        (None, dict(evaluators=("reconstruction",), data="half")),
        (LANGUAGE, dict(evaluators=("likelihood",), tokens="tokens")),
        (LANGUAGE, CAPTIONS | dict(data="corpus")),
    ],
)
def test_data_that_is_enough(folder, language, fields):
    check_data(_config(folder, **fields), language)


@pytest.mark.parametrize(
    ("language", "fields", "message"),
    [
        (LANGUAGE, dict(evaluators=("likelihood",)), "evaluation.tokens is not set; .* likelihood"),
        (LANGUAGE, dict(evaluators=("likelihood",), tokens="gone"), "evaluation.tokens='.*gone'"),
        (LANGUAGE, dict(evaluators=("likelihood",), tokens="other"), "made with the vocabulary"),
        (None, dict(evaluators=("reconstruction",), data="gone"), "evaluation.data='.*gone'"),
        (None, dict(evaluators=("likelihood",), tokens="tokens"), "evaluation.evaluators: like"),
        (LANGUAGE, CAPTIONS | dict(data="half"), "evaluation.data='.*half' .*no split 'train'"),
        (
            LANGUAGE,
            CAPTIONS | dict(data="corpus", vision_tokenizer=""),
            "evaluation.vision_tokenizer is not set",
        ),
    ],
)
def test_data_that_is_missing_is_named_by_its_key(folder, language, fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_data(_config(folder, **fields), language)
    assert "\n" not in str(error.value)
