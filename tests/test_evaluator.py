"""The protocol, the files that it leaves, the command, and the models behind the evaluators."""

import json
import os
import subprocess
import sys

import conftest
import evaluation_stand_ins as parts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import vocab as vocab_lib
from emu3_jax.data import media
from emu3_jax.evaluate import evaluator, items, language_use, registry
from emu3_jax.evaluate.evaluator import Result, Subject, Table
from emu3_jax.generate.sampling import Sampling
from emu3_jax.interop.bundle import Bundle
from emu3_jax.models.transformer import Transformer, TransformerConfig
from emu3_jax.sequence import Grammar
from emu3_jax.text import ByteTokenizer


class Counting:
    """An evaluator that reports one of everything."""

    name = "counting"
    needs = {"bundle": ()}

    def run(self, subject):
        """Two metrics, a table, a picture, a clip, a note."""
        return Result(
            {"share": 12.5, "missing": float("nan")},
            {"rows": Table(("id", "text"), ((1, 'a "quoted", word'),))},
            {"dot": np.zeros((2, 2, 3), np.uint8)},
            {"film": np.zeros((3, 16, 16, 3), np.uint8)},
            ("a doubt",),
        )


def test_results_are_written_and_read_back(tmp_path):
    subject = Subject(bundle=object(), label="here", sampling=Sampling(seed=3))
    results = evaluator.run_all(subject, [Counting()])
    path = evaluator.write_results(results, tmp_path, subject)
    found = json.loads(path.read_text())
    assert found["subject"]["label"] == "here"
    assert found["subject"]["sampling"]["seed"] == 3
    entry = found["results"]["counting"]
    assert entry["metrics"]["missing"] is None
    assert (tmp_path / entry["tables"]["rows"]).read_text() == ('id,text\n1,"a ""quoted"", word"\n')
    assert (tmp_path / entry["pictures"]["dot"]).stat().st_size > 0
    assert evaluator.read_results(tmp_path)["counting"]["share"] == 12.5
    assert media.read_video(tmp_path / entry["clips"]["film"])[0].shape == (3, 16, 16, 3)
    assert entry["notes"] == ["a doubt"]
    files = {"rows.csv", "dot.png", "film.mp4"}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json"} | {
        f"counting_{f}" for f in files
    }
    assert evaluator.flat_metrics(results)["counting/share"] == 12.5
    assert "12.500" in evaluator.format_results(results)
    assert "note: a doubt" in evaluator.format_results(results)


def test_what_any_evaluator_lacks_is_told_before_the_first_runs():
    started = []
    with pytest.raises(ValueError, match="evaluator counting needs a language model"):
        evaluator.run_all(Subject(), [Counting()], started.append)
    assert not started


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ValueError, match="'likelyhood'.*mean likelihood.*known: reconstruction"):
        registry.make_evaluators(["reconstruction", "likelyhood"])


def test_every_registered_evaluator_goes_by_its_name():
    names = list(registry.EVALUATORS)
    assert [e.name for e in registry.make_evaluators(names)] == names


def test_the_command_tells_mistakes_in_one_line(tmp_path):
    command = [sys.executable, "-m", "emu3_jax.evaluate", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(
        [*command, "--evaluators=reconstruktion"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean reconstruction?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    parts.write_corpus(folder)
    vocab = vocab_lib.small(256, 64)
    config = TransformerConfig(
        vocab_size=vocab.size,
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        vocab_multiple=64,
    )
    model = Transformer(config)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    bundle = Bundle(model, variables, vocab, Grammar(vocab, ByteTokenizer()))
    tokenizer = (parts.GreyTokenizer(), {})
    return Subject(bundle=bundle, vision_tokenizer=tokenizer, data=folder, batch_size=4)


def test_a_real_model_draws_and_writes(subject):
    stills = items.read_images(subject.data, "validation_combination")
    drawn = language_use.draw(subject, stills)
    assert [d.shape for d in drawn] == [(16, 16, 3)] * 3
    assert np.array_equal(drawn, language_use.draw(subject, stills))
    written = language_use.caption(subject, [item.pixels for item in stills])
    assert len(written) == 3
    assert all(isinstance(text, str) for text in written)


def test_the_command_evaluates_weights_on_a_folder(subject, tmp_path):
    command = [
        sys.executable, "-m", "emu3_jax.evaluate", "--evaluators=reconstruction",
        f"--vision_tokenizer={conftest.GOLDEN / 'vision_tokenizer'}", f"--data={subject.data}",
        f"--output={tmp_path}", "--limit=1",
    ]  # fmt: skip
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | cache
    )
    assert done.returncode == 0, done.stderr
    metrics = evaluator.read_results(tmp_path)["reconstruction"]
    assert metrics["count_images"] == 1
    assert f"{metrics['psnr_images']:.3f}" in done.stdout
