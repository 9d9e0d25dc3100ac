"""The task grpo: its gradient by hand, on any mesh; rewards that rise; runs that are resumed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from shrunken_twins import twin
from tiny_models import save_vision_tokenizer
from tiny_policy import KEY, MODEL, started, steps_of, write_model
from token_records import GRAMMAR
from toy_task import assert_same_trees, leaves, run_config

from emu3_jax import sharding
from emu3_jax.aot.compile_and_report import compile_and_report, program_of
from emu3_jax.aot.topology import machine
from emu3_jax.config import ConfigError, to_values
from emu3_jax.data.tokens.preference_batches import FIELDS, Answer, row_of
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.models.language.lora import LoraConfig
from emu3_jax.sequence import Document, Image, Text, TokenClass
from emu3_jax.sharding import MeshConfig
from emu3_jax.train import weights
from emu3_jax.train.__main__ import train_config
from emu3_jax.train.optimizer import OptimizerConfig
from emu3_jax.train.run.metrics import read_metrics
from emu3_jax.train.run_config import RunConfig
from emu3_jax.train.tasks import registry
from emu3_jax.train.tasks.language.grpo import GrpoConfig, GrpoTask, PolicyLoss
from emu3_jax.train.tasks.language.pretrain import LossConfig
from emu3_jax.train.tasks.language.reference_task import REFERENCE, PolicyAndReference
from emu3_jax.train.tasks.language.rollouts import RolloutData, Rollouts

LOW = ({"scorer": "tiny_policy:LowCodes"},)
VISUAL = range(GRAMMAR.vocab.visual_start, GRAMMAR.vocab.visual_end)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with words.txt, and the models policy/ and other/."""
    folder = tmp_path_factory.mktemp("grpo")
    (folder / "words.txt").write_text("".join(f"no {i}\n" for i in range(5)))
    write_model(folder / "policy", 1)
    write_model(folder / "other", 2)
    return folder


def grpo_config(files, start=None, run=None, beta=0.1, rollouts=None, **data) -> GrpoConfig:
    sizes = dict(height=2, width=3, batch_size=8, sequence_length=24, candidates=4)
    data = RolloutData(**({"prompts": str(files / "words.txt")} | sizes | data))
    rollouts = rollouts or Rollouts(LOW, batch_size=8)
    start = start or PolicyAndReference(str(files / "policy"))
    run = run or RunConfig(steps=1)
    return GrpoConfig(MODEL, data, rollouts, run, PolicyLoss(beta), LossConfig(16), start)


@pytest.fixture(scope="module")
def two_steps(files, first_device):
    """With another reference, so that nothing is zero."""
    start = PolicyAndReference(str(files / "policy"), str(files / "other"))
    return steps_of(GrpoTask(grpo_config(files, start)), first_device, count=2)


def test_policy_and_reference_begin_equal(files, first_device):
    ((metrics,), (batch,), _) = steps_of(GrpoTask(grpo_config(files)), first_device)
    assert metrics["kl"] == 0 and metrics["gradient_norm"] > 0.01
    assert metrics["reward/low"] == pytest.approx(batch["rewards"].mean(), rel=1e-6)
    assert metrics["reward_deviation/low"] == pytest.approx(batch["deviations"].mean(), rel=1e-6)
    assert metrics["groups/equal"] == metrics["images/unscored"] == 0
    assert metrics["loss"] == pytest.approx(metrics["loss/policy"], rel=1e-6)


def by_hand(task, state, batch, beta):
    """(loss, gradient of the output matrix) in float64, from the states before that matrix."""
    shape = batch["inputs"].shape
    inside = (batch["inputs"], np.broadcast_to(np.arange(shape[1]), shape), batch["segment_ids"])

    def log_p(params):
        hidden = task.model.apply({"params": params}, *map(jnp.asarray, inside), method="hidden")
        hidden = np.asarray(hidden, np.float64)
        logits = hidden @ np.asarray(params["lm_head"]["kernel"], np.float64)[:, list(VISUAL)]
        logits -= logits.max(-1, keepdims=True)
        return hidden, logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    (hidden, policy), (_, reference) = log_p(state.params), log_p(state.model_state[REFERENCE])
    total, gradient = 0.0, np.zeros((MODEL.hidden_size, len(VISUAL)))
    count = batch["counted"].sum()
    for row, column in np.argwhere(batch["counted"] > 0):
        code = batch["targets"][row, column] - VISUAL.start
        advantage = float(batch["advantages"][row])
        ratio = np.exp(reference[row, column, code] - policy[row, column, code])
        total += -advantage * policy[row, column, code] + beta * (ratio - np.log(ratio) - 1)
        slope = (np.arange(len(VISUAL)) == code) - np.exp(policy[row, column])
        weight = -advantage + beta * (1 - ratio)
        gradient += weight * hidden[row, column][:, None] * slope
    return total / count, gradient / count


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_formula(files, first_device, beta):
    start = PolicyAndReference(str(files / "policy"), str(files / "other"))
    task = GrpoTask(grpo_config(files, start, beta=beta))
    with jax.set_mesh(first_device):
        state = started(task, first_device, optax.sgd(0.1))
        stream = task.batches(first_device)
        stream.observe(state)
        batch = next(stream)

        def loss_of(params):
            loss = task.loss(params, state.model_state, batch, KEY, 0)
            return loss.total / loss.weight

        value, found = jax.jit(jax.value_and_grad(loss_of))(state.params)
        expected, gradient = by_hand(task, state, batch, beta)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    matrix = np.asarray(found["lm_head"]["kernel"])
    # Sums of 48 products in float32.
    np.testing.assert_allclose(matrix[:, list(VISUAL)], gradient, atol=1e-6)
    assert np.abs(gradient).max() > 0.01
    # Ids that cannot be drawn have no gradient in the output matrix.
    assert not matrix[:, : VISUAL.start].any() and not matrix[:, VISUAL.stop :].any()
    assert np.abs(leaves(found["embed"])["['embedding']"]).max() > 0  # and the layers have one


def test_the_probabilities_of_all_images_add_up_to_one(files, first_device):
    """Of one code each, by enumeration: they are those of the draws, which give codes alone."""
    task = GrpoTask(grpo_config(files, height=1, width=1))
    rows = []
    for code in range(len(VISUAL)):
        built = GRAMMAR.build(Document((Text("no 1"), Image(np.full((1, 1), code)))))
        rows.append(row_of(Answer(built.ids, built.classes == TokenClass.IMAGE), 24, 0))
    rows = {name: np.stack([row[name] for row in rows]) for name in FIELDS}
    with jax.set_mesh(first_device):
        state = started(task, first_device, optax.sgd(0.1))
        log_p = task.row_log_probabilities(state.params, rows, VISUAL)
    assert np.exp(np.asarray(log_p))[rows["counted"] > 0].sum() == pytest.approx(1, abs=1e-5)


def test_rewards_rise(files, first_device):
    task = GrpoTask(grpo_config(files, beta=0.01, batch_size=32, candidates=8))
    metrics, _, _ = steps_of(task, first_device, count=25, rate=2.0)
    rewards = [one["reward/low"] for one in metrics]
    # A mean of 5 x 32 images of 6 codes has a deviation of 0.016.
    assert np.mean(rewards[:5]) < 0.65 and np.mean(rewards[-5:]) > 0.8
    assert metrics[-1]["kl"] > 0.01


def test_images_are_drawn_in_the_compute_type(files, first_device):
    config = grpo_config(files)
    config = dataclasses.replace(config, model=dataclasses.replace(MODEL, dtype="bfloat16"))
    (metrics,), _, state = steps_of(GrpoTask(config), first_device)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert metrics["kl"] < 1e-4 and metrics["gradient_norm"] > 0.01


@pytest.mark.parametrize(
    "sizes",
    [dict(fsdp=8), dict(data=2, fsdp=2, context=2), dict(data=2, fsdp=2, tensor=2)],
    ids=str,
)
def test_a_mesh_of_eight_devices_computes_the_same(files, two_steps, sizes):
    start = PolicyAndReference(str(files / "policy"), str(files / "other"))
    mesh = sharding.make_mesh(MeshConfig(**sizes))
    metrics, drawn, state = steps_of(GrpoTask(grpo_config(files, start)), mesh, count=2)
    for ours, theirs in zip(drawn, two_steps[1], strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    for ours, theirs in zip(metrics, two_steps[0], strict=True):
        assert ours == pytest.approx(theirs, rel=5e-5, abs=5e-5)
    for name, value in leaves(two_steps[2].params).items():
        np.testing.assert_allclose(leaves(state.params)[name], value, atol=5e-5, err_msg=name)


def test_micro_batches_add_up(files, first_device, two_steps):
    start = PolicyAndReference(str(files / "policy"), str(files / "other"))
    task = GrpoTask(grpo_config(files, start))
    (metrics,), _, _ = steps_of(task, first_device, accumulation=4)
    assert metrics == pytest.approx(two_steps[0][0], rel=1e-5, abs=1e-6)


# --------------------------------------------------------------------------------------- judges


def test_the_policy_cannot_change_its_judge(files, first_device):
    """The likelihood is read with the reference, whatever became of the policy."""
    task = GrpoTask(grpo_config(files, rollouts=Rollouts(({"scorer": "likelihood"},))))
    _, drawn, _ = steps_of(task, first_device, count=2, rate=50.0)
    vocab = GRAMMAR.vocab
    with jax.set_mesh(first_device):
        bundle, _ = weights.load_language_model(files / "policy")
        reader = task.scorers[0].of_model(bundle)
        for batch in drawn:
            codes = [
                vocab.codes(row[vocab.is_visual(row)]).reshape(2, 3) for row in batch["targets"]
            ]
            texts = [bytes(row[1:5].astype(np.uint8)).decode() for row in batch["inputs"]]
            scores = reader.score(texts, codes)
            np.testing.assert_allclose(batch["rewards"][:, 0], scores, rtol=1e-5)


def test_judges_of_pixels_see_what_the_codes_mean(files, first_device, tmp_path, monkeypatch):
    save_vision_tokenizer(tmp_path / "vision", codebook_size=100)
    write_model(tmp_path / "model", vision_fingerprint=None)
    start, seen = PolicyAndReference(str(tmp_path / "model")), []

    def brightness(prompts, images):
        seen.extend(zip(prompts, images, strict=True))
        return np.array([image.mean() for image in images])

    monkeypatch.setattr("tiny_policy.brightness", brightness, raising=False)
    entries = ({"scorer": "tiny_policy:brightness"},)
    with pytest.raises(ValueError, match="vision_tokenizer is empty, and brightness reads pixels"):
        GrpoTask(grpo_config(files, start, rollouts=Rollouts(entries)))
    rollouts = Rollouts(entries, str(tmp_path / "vision"), Sampling(guidance=2.0))
    task = GrpoTask(grpo_config(files, start, rollouts=rollouts))
    (metrics,), _, _ = steps_of(task, first_device)
    assert len(seen) == 8 and {image.shape for _, image in seen} == {(4, 6, 3)}
    worth = np.mean([image.mean() for _, image in seen])
    assert metrics["reward/brightness"] == pytest.approx(worth, rel=1e-5)
    # The model that was trained with another tokenizer is refused before anything is drawn.
    task = GrpoTask(grpo_config(files, rollouts=rollouts))
    with jax.set_mesh(first_device), pytest.raises(ValueError, match="was trained with"):
        task.batches(first_device)


# ---------------------------------------------------------------------------------------- runs


def _train(config, path, steps=4):
    """What the training command does; the state after the last step."""
    constant = OptimizerConfig(learning_rate=0.01, warmup_steps=0, schedule="constant")
    run = run_config(steps=steps, every=2, optimizer=constant)
    values = ConfigDict(to_values(dataclasses.replace(config, run=run)))
    return train_config(values, str(path), allow_changes=True)


@pytest.mark.parametrize(
    "adapted",
    [pytest.param(False, id="whole"), pytest.param(True, id="lora", marks=pytest.mark.slow)],
)
def test_a_resumed_run_ends_as_a_whole_one(files, tmp_path, adapted, capsys):
    config = grpo_config(files, null_prompt=0.3)
    if adapted:
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        adapted = registry.find_for({"task": "grpo", "lora": {}})
        config = adapted.Config(**fields, lora=LoraConfig(rank=2, alpha=4.0))
    for steps in (2, 4):
        parts = _train(config, tmp_path / "parts", steps)
    whole = _train(config, tmp_path / "whole")
    assert_same_trees(parts, whole)
    logged = [read_metrics(tmp_path / name) for name in ("whole", "parts")]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in logged]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert "rollouts, batch 1/1: 8 requests in 8 rows" in capsys.readouterr().out
    tree = (tmp_path / "whole" / "checkpoints" / "4" / "state" / "_METADATA").read_text()
    assert ("lora_a" if adapted else "lm_head") in tree and "reference" not in tree
    bundle, _ = weights.load_language_model(tmp_path / "whole")
    assert bundle.max_context is None and bundle.learnt is None  # as of the model it began with
    assert logged[0][-1]["data/images"] == 32 and logged[0][-1]["kl"] > 0


def test_a_reference_of_other_weights_is_refused_on_resume(files, tmp_path):
    _train(grpo_config(files), tmp_path, steps=2)
    other = PolicyAndReference(str(files / "policy"), str(files / "other"))
    with pytest.raises(ValueError, match="the run began with a reference of the weights"):
        _train(grpo_config(files, other), tmp_path)


# ------------------------------------------------------------------------- bad input, and ahead


def test_what_is_wrong_is_one_sentence_before_any_work(files, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    cases = {
        "empty.txt: holds no prompt": dict(prompts=str(tmp_path / "empty.txt")),
        "must be at least 20; it is 12": dict(sequence_length=12),
        "batch_size=6 images are not whole groups": dict(batch_size=6),
        r"rollouts.scorers\[0\].scorer: .*likelyhood.*did you mean": dict(
            rollouts=Rollouts(({"scorer": "likelyhood"},))
        ),
        "start.transformer is empty": dict(start=PolicyAndReference()),
    }
    for message, changes in cases.items():
        with pytest.raises(ValueError, match=message):
            GrpoTask(grpo_config(files, **changes))
    task = GrpoTask(grpo_config(files, batch_size=4))
    with pytest.raises(ValueError, match="data.batch_size=4 is split over .* multiple of 8"):
        task.batches(sharding.make_mesh(MeshConfig(fsdp=8)))
    with pytest.raises(ValueError, match="beta must be 0 or more"):
        PolicyLoss(beta=-1.0)


def test_nothing_is_learnt_where_no_image_has_a_score(files, first_device):
    rollouts = Rollouts(({"scorer": "tiny_policy:Blind"},))
    with pytest.raises(ValueError, match="none of 8 images has a score: blind: the score is inf"):
        steps_of(GrpoTask(grpo_config(files, rollouts=rollouts)), first_device)


def test_the_vocabulary_is_that_of_the_policy(files):
    values = to_values(grpo_config(files))
    del values["model"]["vocab_size"]
    assert GrpoTask.resolve(values).model.vocab_size == GRAMMAR.vocab.size
    values["start"]["transformer"] = ""
    with pytest.raises(ConfigError, match="start.transformer is empty"):
        GrpoTask.resolve(values)


def test_its_step_is_compiled_ahead_of_time(capsys):
    config = twin("configs/post_training/grpo.py")
    found = compile_and_report(
        config, "train", machine("cpu:8"), search=False, with_estimate=False, plan_only=True
    )
    assert found.fits and "train on 8 chips" in capsys.readouterr().out
    assert program_of(config).task.with_layers(1).model.num_layers == 1
