"""Pairs of a tiny model's own: the tokens that were drawn, resumable to the byte, bad scorers."""

import dataclasses
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from paths import ROOT
from tiny_models import GUIDED

from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.tokens.records import Counts, open_dataset
from emu3_jax.generate import best_of, modalities
from emu3_jax.preferences.candidates import PairMaker
from emu3_jax.preferences.pair_dataset import make_preferences
from emu3_jax.preferences.preferences_config import PreferencesConfig
from emu3_jax.scorers import registry
from emu3_jax.sequence import Image
from emu3_jax.tokenize.run import TokenizeError

CAPTIONS = ["red apple", "a clock", "two foxes"]
SIZE = (2, 3)
N = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_directories):
    folder = tmp_path_factory.mktemp("preferences")
    (folder / "words.txt").write_text("\n".join(CAPTIONS))
    return PreferencesConfig(
        output=str(folder / "pairs"),
        prompts=str(folder / "words.txt"),
        model=str(tiny_directories / "language"),
        vision_tokenizer=str(tiny_directories / "vision"),
        height=SIZE[0],
        width=SIZE[1],
        candidates=N,
        sampling=GUIDED,
        prompts_per_shard=2,
    )


@pytest.fixture(scope="module")
def whole(config):
    return make_preferences(config)


@pytest.fixture(scope="module")
def candidates(tiny_bundle):
    """codes int32 [3, N, h, w] and likelihoods float64 [3, N], by calls of one prompt each."""

    def draw(i, caption):
        options = modalities.Options(GUIDED, first=i * N)
        return modalities.draw_images(tiny_bundle, [caption] * N, [SIZE] * N, options)

    codes = [draw(i, caption) for i, caption in enumerate(CAPTIONS)]
    nats = [
        best_of.caption_nats(tiny_bundle, [Image(one) for one in drawn], [caption] * N)
        for drawn, caption in zip(codes, CAPTIONS, strict=True)
    ]
    return np.array(codes), -np.array(nats)


@pytest.fixture
def judges(monkeypatch):
    """A module of scorers that a test fills: `judges:NAME`."""
    made = types.ModuleType("judges")
    monkeypatch.setitem(sys.modules, "judges", made)
    return made


def changed(config, folder, **changes):
    return dataclasses.replace(config, output=str(folder / "pairs"), **changes)


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_the_likeliest_and_the_least_likely_tokens_are_kept(whole, candidates, tiny_bundle):
    codes, likelihoods = candidates
    fingerprint = vision_fingerprint(tiny_bundle.vision.config, tiny_bundle.vision_variables)
    dataset = open_dataset(whole, tiny_bundle.grammar, fingerprint)
    records = dataset.records("preference")
    assert [record.segments[0].text for record in records] == CAPTIONS
    for i, record in enumerate(records):
        best, worst = likelihoods[i].argmax(), likelihoods[i].argmin()
        np.testing.assert_array_equal(record.segments[1].codes, codes[i, best])
        np.testing.assert_array_equal(record.segments[2].codes, codes[i, worst])
        assert record.key == f"{i + 1}/{best}-{worst}" and record.source == "words"
        scores = record.attributes["scores"]
        for side, j in (("chosen", best), ("rejected", worst)):
            assert scores[side]["likelihood"] == pytest.approx(likelihoods[i, j], rel=1e-5)
        origin = record.attributes["source"]
        assert (origin["seed"], origin["chosen"], origin["rejected"]) == (
            GUIDED.seed, i * N + best, i * N + worst,
        )  # fmt: skip
        assert origin["model"].endswith("language")
    # Of one prompt and size, both documents are equally long.
    lengths = [len(caption) + len("2*3") + 6 + 8 for caption in CAPTIONS]
    counts = dataset.info.counts["preference"]
    assert counts == Counts(3, 2 * sum(lengths), min(lengths), max(lengths))
    assert dataset.info.recipe["candidates"] == N and dataset.info.skipped == 0


def test_a_killed_run_goes_on_and_workers_share_the_work(whole, config, tmp_path, monkeypatch):
    make = PairMaker.make

    def dies(self, index, item_done):
        if index == 1:
            raise KeyboardInterrupt
        return make(self, index, item_done)

    killed = changed(config, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(PairMaker, "make", dies)
        with pytest.raises(KeyboardInterrupt):
            make_preferences(killed)
    assert not (tmp_path / "killed/pairs/dataset.json").exists()
    assert content(make_preferences(killed)) == content(whole)
    for worker in (1, 0):
        folder = make_preferences(changed(config, tmp_path / "two", worker=worker, workers=2))
    assert content(folder) == content(whole)
    before = content(whole)
    monkeypatch.setattr(PairMaker, "make", None)  # nothing is made again
    assert content(make_preferences(config)) == before


def test_scorers_are_combined_by_rank_over_the_pixels_that_the_codes_mean(
    config, candidates, tiny_bundle, tmp_path, judges
):
    from emu3_jax.generate import codec

    judges.red = lambda prompts, images: np.array([image[..., 0].mean() for image in images])
    judges.long = lambda prompts, images: np.array([1000.0 * len(p) for p in prompts])
    entries = tuple({"scorer": name} for name in ("likelihood", "judges:red", "judges:long"))
    folder = make_preferences(changed(config, tmp_path, scorers=entries, pairs="all"))
    codes, likelihoods = candidates
    expected = []
    for i, caption in enumerate(CAPTIONS):
        red = np.array([image[..., 0].mean() for image in codec.decode(tiny_bundle, codes[i])])
        ranks = [likelihoods[i].argsort().argsort() + red.argsort().argsort()][0]
        pairs = [(a, b) for a in range(N) for b in range(N) if ranks[a] > ranks[b]]
        expected += [(caption, f"{i + 1}/{a}-{b}") for a, b in pairs]
    records = open_dataset(folder).records("preference")
    assert [(r.segments[0].text, r.key) for r in records] == expected
    assert set(records[0].attributes["scores"]["chosen"]) == {"likelihood", "red", "long"}


def test_a_candidate_without_a_score_is_left_out_with_its_reason(
    config, whole, tmp_path, judges, candidates
):
    seen = []

    def picky(prompts, images):
        for image in images:
            if not any(np.array_equal(image, one) for one in seen):
                seen.append(image)
        if any(np.array_equal(image, seen[1]) for image in images):
            raise RuntimeError("no face found")
        values = np.arange(len(images), dtype=np.float64)
        values[[i for i, image in enumerate(images) if np.array_equal(image, seen[2])]] = np.nan
        return values

    judges.picky = picky
    entries = ({"scorer": "likelihood"}, {"scorer": "judges:picky"})
    one_shard = changed(config, tmp_path, scorers=entries, prompts_per_shard=3)
    folder = make_preferences(one_shard)
    assert [(one["key"], one["reason"]) for one in skipped(folder)] == [
        ("1/1", "picky: no face found"),
        ("1/2", "picky: the score is nan"),
    ]
    info = open_dataset(folder).info
    assert info.skipped == 2 and info.counts["preference"].records == 3
    assert open_dataset(folder).records("preference")[0].key in ("1/0-3", "1/3-0")


def test_prompts_without_a_pair_are_listed(config, tmp_path, judges):
    judges.same = lambda prompts, images: np.array([float("red" in p) for p in prompts])
    judges.mostly = lambda prompts, images: np.array(
        [i if "clock" in p else np.nan if "red" in p and i else 0.0 for i, p in enumerate(prompts)]
    )
    with pytest.raises(TokenizeError, match="lists why no item of 12 became a record"):
        make_preferences(changed(config, tmp_path / "same", scorers=({"scorer": "judges:same"},)))
    (tmp_path / "words.txt").write_text("red apple\n" + "x" * 300 + "\na clock\n")
    prompts, entries = str(tmp_path / "words.txt"), ({"scorer": "judges:mostly"},)
    some = changed(config, tmp_path, scorers=entries, prompts=prompts, prompts_per_shard=3)
    folder = make_preferences(some)
    reasons = {one["key"]: one["reason"] for one in skipped(folder)}
    assert reasons["1"] == "no pair: 1 of its 4 candidates are left, expected two"
    assert "more than the context of 200" in reasons["2"] and "1/3" in reasons
    (record,) = open_dataset(folder).records("preference")
    assert record.key == "3/3-0" and record.attributes["source"]["chosen"] == 7


def test_equal_candidates_count_once(config, tmp_path, monkeypatch):
    draw = modalities.draw_images

    def repeats(*arguments):
        codes = draw(*arguments)
        return [codes[i - i % N] if i % N < 2 else one for i, one in enumerate(codes)]

    monkeypatch.setattr(modalities, "draw_images", repeats)
    folder = make_preferences(changed(config, tmp_path, max_skipped=1.0))
    assert {one["reason"] for one in skipped(folder)} == {"it has the codes of candidate 0"}
    assert len(open_dataset(folder).records("preference")) == 3


def test_an_output_of_other_settings_is_refused(whole, config):
    for changes, message in (
        ({"candidates": 5}, "was made with candidates 4, the config has 5"),
        ({"scorers": ({"scorer": "likelihood", "name": "x"},)}, "was made with scorers"),
        ({"pairs": "all"}, "was made with pairs 'best_worst', the config has 'all'"),
    ):
        with pytest.raises(TokenizeError, match=message):
            make_preferences(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"candidates": 1}, "candidates must be at least 2, found 1"),
        ({"pairs": "some"}, "pairs must be one of"),
        ({"scorers": ()}, "scorers is empty"),
        ({"sampling": {"temperature": 0.0}}, "all candidates would be equal"),
        ({"worker": 2, "workers": 2}, "worker must be from 0 to workers - 1"),
        ({"output": "gs://a/b"}, "expected a folder on a disk"),
        ({"height": 0}, "height must be at least 1"),
        ({"model": ""}, "model is empty; set --config.model=PATH"),
    ],
)
def test_configs_that_cannot_be(config, changes, message):
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    with pytest.raises(ConfigError, match=message):
        to_dataclass(PreferencesConfig, values | changes)


def test_the_likelihood_needs_the_model_that_drew():
    (scorer,) = registry.make([{"scorer": "likelihood"}])
    with pytest.raises(ConfigError, match="likelihood: needs a model that reads what was drawn"):
        scorer.score(["a"], [np.zeros((4, 4, 3), np.uint8)])


def test_mistakes_of_the_command_are_one_sentence(tmp_path):
    for words, message in (
        ([], "--config is needed, such as --config=post_training/data/preferences_nano"),
        (
            [
                "--config=post_training/data/preferences_nano",
                f"--config.prompts={tmp_path}/none.txt",
            ],
            "none.txt: cannot be read",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "emu3_jax.preferences", *words],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
