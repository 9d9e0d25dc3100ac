"""What a run writes beside its checkpoints into a bucket: objects in memory behind gs://."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from line_task import LineConfig
from paths import ROOT
from token_records import GRAMMAR, image_record, write_dataset

from emu3_jax import files, vocab
from emu3_jax.config import ConfigError
from emu3_jax.data import media
from emu3_jax.evaluate.during_training import EvaluationCallback, check_data
from emu3_jax.evaluate.evaluator import Evaluator, Result, Subject
from emu3_jax.evaluate.language.likelihood import Likelihood
from emu3_jax.files import AppendedLines, read_lines, write_atomically
from emu3_jax.interop.bundle import Language, load_language, save_language
from emu3_jax.sequence import Grammar
from emu3_jax.text import load_text_tokenizer
from emu3_jax.train.run import checkpoint, run_directory
from emu3_jax.train.run_config import RunConfig

RUN = "gs://bucket/run"
TEXT_MODEL = ROOT / "assets" / "text_nano.model"


class Bucket(MemoryFileSystem):
    """Objects by their name in memory; no name begins with a scheme."""

    store, pseudo_dirs, cachable = {}, [""], False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Stands for every bucket; nothing may appear in the current folder."""
    fake = Bucket()
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    backend = type(epath.Path(RUN)._backend)
    monkeypatch.setattr(backend, "_get_filesystem", lambda self, name: fake)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield fake
    assert not list((tmp_path / "here").iterdir())


def names(bucket, folder="/bucket/run"):
    """The objects below a folder."""
    return {name.removeprefix(folder + "/") for name in bucket.find(folder)}


def test_an_object_is_written_under_its_own_name(bucket):
    for content in (b"old", b"new"):
        write_atomically(f"{RUN}/a", content)
        assert names(bucket) == {"a"} and epath.Path(RUN, "a").read_bytes() == content


def test_a_log_is_written_anew(bucket, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    for begin in (0, 3):
        lines = AppendedLines(RUN, "log")
        for n in range(begin, begin + 3):
            lines.append({"n": n})
        # The others wait for a minute to pass.
        assert [line["n"] for line in read_lines(RUN, "log")] == list(range(begin + 1))
        lines.close()
        assert [line["n"] for line in read_lines(RUN, "log")] == list(range(begin + 3))
        now[0] += 60


def test_the_language_of_a_run(bucket, tmp_path):
    tokenizer = load_text_tokenizer(TEXT_MODEL)
    words = vocab.small(tokenizer.size, 100)
    for _ in range(2):  # a run that goes on writes it anew
        save_language(RUN, Language(words, Grammar(words, tokenizer), "v1", 64))
        assert names(bucket) == {"vocab.json", "bundle.json", "text_tokenizer.model"}
    again = load_language(RUN)
    assert again.vocab == words and again.grammar.tokenizer.fingerprint == tokenizer.fingerprint
    save_language(tmp_path / "copy", again)  # what is read there can be written elsewhere
    for name in names(bucket):
        assert (tmp_path / "copy" / name).read_bytes() == epath.Path(RUN, name).read_bytes()


def test_a_run_is_distinguished_from_a_model(bucket):
    assert not checkpoint.is_run_directory(RUN)
    (epath.Path(RUN) / "checkpoints" / "4").mkdir(parents=True)
    (epath.Path(RUN) / "checkpoints" / "4" / "state").write_text("")
    assert checkpoint.is_run_directory(RUN)


def test_a_start_and_its_config(bucket):
    config = LineConfig(RunConfig(steps=1))
    run_directory.claim(config, RUN, False)
    for n in (1, 2):
        run_directory.record_start(RUN)
        assert len(read_lines(RUN, "starts.jsonl")) == n
    assert names(bucket) == {"config.json", "starts.jsonl"}
    assert run_directory.read(RUN) == config


def test_held_out_tokens_are_looked_for(bucket, tmp_path):
    write_dataset(tmp_path / "tokens", [image_record()])
    for path in (tmp_path / "tokens").iterdir():
        epath.Path("gs://bucket/tokens", path.name).write_bytes(path.read_bytes())
    language = Language(GRAMMAR.vocab, GRAMMAR)
    check_data([Likelihood(tokens="gs://bucket/tokens")], "language_model", language)
    with pytest.raises(ConfigError, match="neither gs://bucket/gone nor gs://bucket/gone/val"):
        check_data([Likelihood(tokens="gs://bucket/gone")], "language_model", language)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing(Evaluator):
    """An evaluator that draws one image of one grey."""

    measures: ClassVar[str] = "language_model"

    name: str = "drawing"

    def run(self, subject):
        return Result({"one": 1.0}, images={"grey": np.full((2, 3, 3), 7, np.uint8)})


class Shown:
    """The part of a metrics writer that images go to."""

    images = ()

    def write_image(self, step, name, pixels):
        self.images += ((step, name),)


def test_images_of_evaluation(bucket):
    callback = EvaluationCallback(
        Drawing(), lambda state, label: Subject(language_model=object(), label=label), RUN
    )
    writer = Shown()
    for _ in range(2):  # the second time over what is there
        values = callback(4, None, writer)
    assert values["validation/drawing/one"] == 1.0 and writer.images == ((4, "drawing/grey"),) * 2
    assert names(bucket) == {"images/step_000004/drawing_grey.png"}
    content = epath.Path(RUN, "images/step_000004/drawing_grey.png").read_bytes()
    assert media.read_image(content).tolist() == np.full((2, 3, 3), 7).tolist()
