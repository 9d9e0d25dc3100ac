"""Groups of images that a policy draws: what each is worth, in which order, and bad input."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_policy import MODEL, LowCodes, Picky, write_model
from token_records import GRAMMAR

from emu3_jax.config import ConfigError, to_dataclass
from emu3_jax.data.prompts import Prompt
from emu3_jax.generate import modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.sequence import Document, Image, Text
from emu3_jax.train import weights
from emu3_jax.train.tasks.language.rollouts import (
    RolloutBatches,
    RolloutData,
    Rollouts,
    check_fits,
    judge,
)

PROMPTS = [Prompt(str(i), f"no {i}", f"words.txt:{i}") for i in range(5)]
DATA = RolloutData("words.txt", 2, 3, batch_size=8, sequence_length=24, candidates=4)
ROLLOUTS = Rollouts(({"scorer": "tiny_policy:LowCodes"},), batch_size=8)


# ---------------------------------------------------------------------------------- advantages


def test_advantages_are_deviations_from_the_group_by_scorer():
    rewards = np.random.default_rng(0).normal(size=(3, 4, 2)) * [1.0, 1000.0]
    found = judge(rewards)
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(found.deviations_PS, rewards.std(1), rtol=1e-12)
    expected = (centred / (rewards.std(1, keepdims=True) + 1e-6)).mean(-1)
    np.testing.assert_allclose(found.advantages_PG, expected, rtol=1e-12)
    assert found.scored_PG.all()
    np.testing.assert_allclose(found.advantages_PG.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, 0.0, -1e9])
def test_images_of_equal_worth_have_no_advantage(value):
    same = np.full((2, 8, 1), value, np.float32)
    # The same image is read with other last bits in another row.
    same[1, ::2] *= np.float32(1 + 1e-6)
    found = judge(same)
    assert not found.advantages_PG.any() and not found.deviations_PS.any()
    # Another scorer still tells them apart.
    both = np.concatenate([same, np.arange(16.0).reshape(2, 8, 1)], axis=-1)
    np.testing.assert_allclose(judge(both).advantages_PG, judge(both[..., 1:]).advantages_PG / 2)


def test_an_image_without_a_score_is_not_compared():
    rewards = np.array([[[1.0, 5], [3, 5], [np.nan, 7], [2, np.inf]], [[np.nan, 1]] * 4])
    found = judge(rewards)
    assert found.scored_PG.tolist() == [[True, True, False, False], [False] * 4]
    np.testing.assert_allclose(found.advantages_PG[0], [-0.5, 0.5, 0, 0], rtol=2e-6)
    assert not found.advantages_PG[1].any()
    for array in found:
        assert np.isfinite(array).all()


# ------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("policy"))


def batches(bundle, rows=range(8), scorers=None, **changes):
    data, scorers = dataclasses.replace(DATA, **changes), scorers or (LowCodes(),)
    models = {None: (bundle, bundle)}.get  # of the state None
    return RolloutBatches(data, ROLLOUTS, PROMPTS, GRAMMAR, scorers, models, rows)


def take(stream, count=1):
    """The last of the next batches."""
    for _ in range(count):
        stream.observe(None)
        batch = next(stream)
    return batch


def drawn(bundle, caption, first):
    """The four images of a prompt, drawn alone."""
    options = modalities.Options(Sampling(), first=first)
    return modalities.draw_images(bundle, [caption] * 4, [(2, 3)] * 4, options)


def test_rows_hold_what_the_policy_drew_and_what_it_is_worth(policy, first_device):
    with jax.set_mesh(first_device):
        bundle, _ = weights.load_language_model(policy)
        stream = batches(bundle)
        order = [stream._draw(n)[0] for n in range(10)]
        assert sorted(order[:5]) == sorted(order[5:]) == [p.text for p in PROMPTS]
        batch = take(stream, 2)  # prompts 2 and 3
        codes = drawn(bundle, order[2], 8) + drawn(bundle, order[3], 12)
    for row, image in enumerate(codes):
        document = Document((Text(order[2 + row // 4]), Image(image)))
        ids = GRAMMAR.build(document).ids
        found = np.append(batch["inputs"][row, :1], batch["targets"][row, : len(ids) - 1])
        np.testing.assert_array_equal(found, ids)
        assert (batch["segment_ids"][row] == (np.arange(24) < len(ids) - 1)).all()
        counted = batch["counted"][row] > 0
        np.testing.assert_array_equal(counted, GRAMMAR.vocab.is_visual(batch["targets"][row]))
        assert counted.sum() == 6
        assert batch["rewards"][row, 0] == np.float32((image < 50).mean())
    expected = judge(batch["rewards"].reshape(2, 4, 1))
    np.testing.assert_allclose(batch["advantages"], expected.advantages_PG.ravel(), rtol=1e-5)
    np.testing.assert_allclose(batch["deviations"], expected.deviations_PS.repeat(4, 0), rtol=1e-5)


def test_neither_processes_nor_batches_change_the_stream(policy, first_device):
    with jax.set_mesh(first_device):
        bundle, _ = weights.load_language_model(policy)
        whole = batches(bundle)
        both = [take(whole), take(whole)]
        halves = [take(batches(bundle, rows=rows)) for rows in (range(4), range(4, 8))]
        large = take(batches(bundle, rows=range(16), batch_size=16))
        later = batches(bundle)
        later.set_state(batches(bundle).get_state() | {"prompts": 2})
        resumed = take(later)
    for name, array in both[0].items():
        parts = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(parts, array, err_msg=name)
        together = np.concatenate([one[name] for one in both])
        np.testing.assert_array_equal(large[name], together, err_msg=name)
        np.testing.assert_array_equal(resumed[name], both[1][name], err_msg=name)
    assert halves[1].keys() == whole.share.keys() and whole.share["rewards"] == (0, 8)


def test_some_prompts_are_left_out_where_they_are_learnt(policy, first_device):
    with jax.set_mesh(first_device):
        bundle, _ = weights.load_language_model(policy)
        stream, plain = batches(bundle, null_prompt=0.5), batches(bundle)
        chosen = [stream._draw(n) for n in range(200)]
        assert [text for text, _ in chosen] == [plain._draw(n)[0] for n in range(200)]
        assert 70 < sum(left_out for _, left_out in chosen) < 130
        first = next(n for n, (_, left_out) in enumerate(chosen) if left_out)
        for one in (stream, plain):
            one.set_state(one.get_state() | {"prompts": first})
        without, whole = take(stream), take(plain)
    np.testing.assert_array_equal(without["rewards"], whole["rewards"])
    for row in range(4):  # the same codes after an empty caption
        images = [batch["targets"][row][batch["counted"][row] > 0] for batch in (without, whole)]
        np.testing.assert_array_equal(*images)
        assert without["inputs"][row, 1] == GRAMMAR.vocab.boi != whole["inputs"][row, 1]


def test_images_without_a_score_do_not_count(policy, first_device, capsys):
    with jax.set_mesh(first_device):
        bundle, _ = weights.load_language_model(policy)
        stream = batches(bundle, scorers=(LowCodes(), Picky()))
        batch = take(stream)
    codes = batch["targets"][:, :18]
    last = [row[GRAMMAR.vocab.is_visual(row)][-1] - GRAMMAR.vocab.visual_start for row in codes]
    scored = np.array(last) % 2 == 1
    np.testing.assert_array_equal(batch["counted"].any(1), scored)
    assert 0 < scored.sum() < 8 and np.isfinite(batch["advantages"]).all()
    assert stream.counts() == {"images": 8, "unscored": 8 - scored.sum()}
    assert "not learnt from, such as one: picky: the score is nan" in capsys.readouterr().out


def test_a_state_of_other_prompts_is_refused(policy):
    here = batches(None)
    state = here.get_state()
    here.set_state(state | {"prompts": 6})
    assert here.get_state()["prompts"] == 6
    for name, message in (("stream", "another seed"), ("contents", "prompts that have changed")):
        with pytest.raises(ValueError, match=message):
            here.set_state(state | {name: "0"})
    assert here.adapt_state({"prompts": 4, "stream": "0", "contents": "0"}) == state | {
        "prompts": 4
    }


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (DATA, dict(candidates=1), "candidates must be at least 2, found 1"),
        (DATA, dict(prompts=""), "prompts is empty"),
        (DATA, dict(null_prompt=1.5), "null_prompt must be from 0 to 1"),
        (DATA, dict(height=0), "height must be at least 1"),
        (DATA, dict(seed=-1), "seed must not be negative"),
        (ROLLOUTS, dict(scorers=()), "scorers is empty"),
        (ROLLOUTS, dict(sampling={"temperature": 0.0}), "sampling.temperature is 0"),
        (ROLLOUTS, dict(batch_size=0), "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(section, changes, message):
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    with pytest.raises(ConfigError, match=message):
        to_dataclass(type(section), values | changes)


def test_batches_are_whole_groups():
    DATA.check_groups()
    with pytest.raises(ValueError, match="batch_size=10 images are not whole groups of .*ates=4"):
        dataclasses.replace(DATA, batch_size=10).check_groups()


def test_prompts_fit_their_rows_and_the_context():
    check_fits(DATA, ROLLOUTS, PROMPTS, GRAMMAR, 24)
    length = len(GRAMMAR.build(Document((Text("no 0"), Image(np.zeros((2, 3), int))))).ids) - 1
    long = [*PROMPTS, Prompt("7", "x" * (4 + 24 - length), "words.txt:7")]
    check_fits(DATA, ROLLOUTS, long, GRAMMAR, None)  # it just fits
    long += [Prompt("8", "x" * (5 + 24 - length), "words.txt:8")]
    with pytest.raises(
        ValueError, match="^words.txt:8: 25 tokens .* must be at least 25; it is 24"
    ):
        check_fits(DATA, ROLLOUTS, long, GRAMMAR, None)
    with pytest.raises(ValueError, match="sequence_length is 24, more than the 20 tokens"):
        check_fits(DATA, ROLLOUTS, PROMPTS, GRAMMAR, 20)
    guided = Rollouts(ROLLOUTS.scorers, sampling=Sampling(guidance=2.0), negative_prompt="x" * 30)
    with pytest.raises(ValueError, match="negative_prompt: 46 tokens .* context of 30"):
        check_fits(DATA, guided, PROMPTS, GRAMMAR, 30)
    check_fits(DATA, dataclasses.replace(guided, sampling=Sampling()), PROMPTS, GRAMMAR, 30)
    assert MODEL.vocab_size == GRAMMAR.vocab.size
