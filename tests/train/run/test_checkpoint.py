"""Checkpoints: complete or absent, kept as configured, and refused with a reason."""

import contextlib
import os
import pathlib
import subprocess
import time

import jax
import numpy as np
import optax
import pytest
from etils import epath
from toy_task import ToyTask, assert_same_trees, run_config

from emu3_jax import sharding
from emu3_jax.sharding import MeshConfig
from emu3_jax.train.loop import Callback, train
from emu3_jax.train.run import checkpoint
from emu3_jax.train.run.checkpoint import (
    CheckpointConfig,
    CheckpointError,
    Checkpoints,
    has_checkpoints,
    restore_variables,
)
from emu3_jax.train.run.metrics import MetricsWriter, read_metrics
from emu3_jax.train.step import abstract_state, init_state

KEY = jax.random.key(0)
DEFAULT = CheckpointConfig()


def _mesh():
    return sharding.make_mesh(MeshConfig(fsdp=2, tensor=4))


def _state(step=0, ema=False):
    state = init_state(ToyTask(), optax.adam(0.1), KEY, _mesh(), ema)
    return state.replace(step=state.step + step)


def _abstract(task=None, optimizer=None, ema=False):
    return abstract_state(task or ToyTask(), optimizer or optax.adam(0.1), KEY, _mesh(), ema)


def _saved(workdir, *steps, config=DEFAULT, ema=False):
    checkpoints = Checkpoints(workdir, config)
    for step in steps:
        checkpoints.save(step, _state(step, ema), {"next": step}, wait=True)
    checkpoints.close()


def _steps(workdir):
    return sorted(int(c.name) for c in (workdir / "checkpoints").iterdir())


def test_what_is_saved_comes_back_in_its_shards(tmp_path):
    _saved(tmp_path, 3, ema=True)
    again = Checkpoints(tmp_path, CheckpointConfig())
    state, position = again.restore(_abstract(ema=True))
    again.close()
    assert_same_trees(state, _state(3, ema=True))
    assert position == {"next": 3}
    layouts = jax.tree.map(lambda a, b: a.sharding == b.sharding, state, _abstract(ema=True))
    assert all(jax.tree.leaves(layouts))
    assert state.params["dense"]["kernel"].addressable_shards[0].data.shape == (4, 2)


def test_retention(tmp_path):
    _saved(tmp_path, 2, 4, 6, 8, 10, config=CheckpointConfig(keep=2, keep_every=4))
    assert _steps(tmp_path) == [4, 8, 10]


def _saved_with_scores(workdir, scores, **settings):
    config = CheckpointConfig(keep=1, best_metric="psnr", **settings)
    checkpoints = Checkpoints(workdir, config)
    for step, score in scores.items():
        checkpoints.save(step, _state(step), {}, wait=True)
        # An evaluation comes after the save, and not at every one.
        checkpoints.note(step, {} if score is None else {"psnr": score, "loss": 0.0})
    checkpoints.close()
    return _steps(workdir)


def test_the_best_by_a_metric_are_kept(tmp_path):
    scores = {2: 20.0, 4: None, 6: 23.0, 8: float("nan"), 10: 21.0, 12: 22.0, 14: None}
    found = _saved_with_scores(tmp_path / "max", scores, best_mode="max", keep_best=2)
    assert found == [6, 12, 14]
    assert _saved_with_scores(tmp_path / "min", scores) == [2, 14]


def test_the_best_of_an_earlier_start_is_kept(tmp_path):
    class Score(Callback):
        every = 2

        def __call__(self, step, state, writer):
            return {"psnr": {2: 30.0, 4: 10.0}.get(step, 20.0 + step / 100)}

    for steps in (4, 10):
        run = run_config(
            steps=steps,
            checkpoint=CheckpointConfig(every=2, keep=1, best_metric="psnr", best_mode="max"),
        )
        train(ToyTask(), run, tmp_path, callbacks=[Score()])
    assert _steps(tmp_path) == [2, 10]


def test_saving_a_step_twice_is_no_error(tmp_path):
    _saved(tmp_path, 3, 3)
    _saved(tmp_path, 3)
    assert _steps(tmp_path) == [3]


def test_a_directory_without_checkpoints(tmp_path):
    assert not has_checkpoints(tmp_path)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.latest_step() is None and not has_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        checkpoints.restore(_abstract())
    checkpoints.close()


def test_an_unfinished_checkpoint_does_not_count_and_is_cleared_away(tmp_path):
    _saved(tmp_path, 3)
    folder = tmp_path / "checkpoints"
    os.rename(folder / "3", folder / "5.orbax-checkpoint-tmp")
    assert not has_checkpoints(tmp_path)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.latest_step() is None
    checkpoints.save(6, _state(6), {}, wait=True)
    checkpoints.close()
    assert _steps(tmp_path) == [6]


def test_a_save_is_awaited_at_the_end_unless_a_process_that_writes_it_is_lost(
    tmp_path, monkeypatch
):
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    for error, awaited in ((None, 1), (KeyError("data"), 1), (lost, 0)):
        with contextlib.suppress(KeyError, jax.errors.JaxRuntimeError):
            with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
                closed = []
                monkeypatch.setattr(checkpoints, "close", lambda: closed.append(1))  # noqa: B023
                if error is not None:
                    raise error
        assert len(closed) == awaited


def _explode(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_failed_save_is_one_sentence_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    _saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.JsonCheckpointHandler, "async_save", _explode)
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(5, _state(5), {}, wait=True)
    message = str(error.value)
    assert message.startswith("saving step 5 to ") and message.endswith("; step 3 is intact")
    assert "No space left on device" in message and "\n" not in message
    assert _steps(tmp_path) == [3]  # nothing half-written
    state, _ = checkpoints.restore(_abstract())
    assert_same_trees(state, _state(3))
    checkpoints.save(5, _state(5), {}, wait=True)  # there is room again
    checkpoints.close()
    assert _steps(tmp_path) == [3, 5]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes, where the machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_during_training(small_disk, caplog, capfd):
    """One sentence and no log of the library's; room made, the run goes on."""

    class Fill(Callback):
        every = 7

        def __call__(self, step, state, writer):
            while not has_checkpoints(small_disk):
                time.sleep(0.01)
            with open(small_disk / "ballast", "wb", buffering=0) as file:
                try:
                    while file.write(b"x" * 4096):
                        pass
                except OSError:
                    return {}

    run = run_config(steps=20, every=5, log_every=100)
    with pytest.raises(CheckpointError, match="saving step 10 .*No space left.*step 5 is intact"):
        train(ToyTask(), run, small_disk, callbacks=[Fill()])
    assert _steps(small_disk) == [5]
    assert not [record for record in caplog.records if record.exc_info]
    assert "No space left" not in "".join(capfd.readouterr())
    with pytest.raises(OSError, match="metrics.jsonl cannot be written: No space left on device"):
        with contextlib.closing(MetricsWriter(small_disk, run.log, {})) as writer:
            for step in range(1000):
                writer.write(step, {"loss": 1.0})
    (small_disk / "ballast").unlink()
    assert int(train(ToyTask(), run, small_disk).step) == 20


def test_a_place_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="checkpoints cannot be kept in .*checkpoints"):
        Checkpoints(tmp_path, CheckpointConfig())


@pytest.mark.parametrize(
    "wanted, message",
    [
        (
            lambda: _abstract(ToyTask(outputs=16)),
            r"checkpoint .*/checkpoints/3 does not fit this config: params/dense/bias is "
            r"float32 \[8\], the config gives float32 \[16\]; params/dense/kernel is",
        ),
        (lambda: _abstract(ema=True), "ema/dense/bias is missing; ema/dense/kernel is missing"),
        (lambda: _abstract(optimizer=optax.sgd(0.1)), "opt_state/0/count is unexpected"),
        (
            lambda: jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, np.float16, sharding=a.sharding),
                _abstract(),
            ),
            r"step is int32 \[\], the config gives float16 \[\]",
        ),
    ],
    ids=["shapes", "average", "optimizer", "dtypes"],
)
def test_a_checkpoint_of_another_config_names_the_first_differences(tmp_path, wanted, message):
    _saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(wanted())
    checkpoints.close()


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    _saved(tmp_path, 3)
    for file in (tmp_path / "checkpoints/3/state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    with pytest.raises(CheckpointError, match="checkpoints/3 cannot be read: "):
        checkpoints.restore(_abstract())
    checkpoints.close()


def _wanted(task=None, mesh=None):
    boxed = jax.eval_shape((task or ToyTask()).init, KEY)
    return sharding.abstract_arrays(boxed, mesh or _mesh())


@pytest.mark.parametrize("ema", [False, True])
def test_evaluation_reads_the_weights_alone(tmp_path, ema):
    state = _state(3, ema)
    if ema:
        state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(3, state, {}, wait=True)
    checkpoints.save(5, _state(5, ema), {}, wait=True)
    checkpoints.close()
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    variables, step = restore_variables(tmp_path, _wanted(mesh=one), step=3)
    assert step == 3
    assert_same_trees(variables, {"params": state.evaluation_params(), **state.model_state})
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(variables))
    assert restore_variables(tmp_path, _wanted())[1] == 5


def test_evaluation_of_what_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        restore_variables(tmp_path, _wanted())
    _saved(tmp_path, 3, 5)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 4; it has: 3, 5"):
        restore_variables(tmp_path, _wanted(), step=4)
    with pytest.raises(CheckpointError, match=r"5 does not fit .*kernel is \[8, 8\], .* \[8, 16\]"):
        restore_variables(tmp_path, _wanted(ToyTask(outputs=16)))
    more = _wanted() | {"statistics": {"mean": jax.ShapeDtypeStruct((), "float32")}}
    with pytest.raises(CheckpointError, match="5 does not fit .*: statistics/mean is missing"):
        restore_variables(tmp_path, more)


@pytest.mark.parametrize(
    "changes", [dict(every=0), dict(keep=0), dict(keep_every=-1), dict(best_mode="most")]
)
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=f"checkpoint.{next(iter(changes))} must be"):
        CheckpointConfig(**changes)


def test_a_path_of_etils_works_as_one_of_pathlib(tmp_path):
    """What gs://bucket/run is turned into; here on a disk."""
    workdir = epath.Path(tmp_path / "run")
    run = run_config(steps=4, every=2)
    state = train(ToyTask(), run, workdir)
    assert [row["step"] for row in read_metrics(workdir)] == [1, 2, 3, 4]
    assert_same_trees(restore_variables(workdir, _wanted())[0]["params"], state.params)
    assert int(train(ToyTask(), run_config(steps=6), workdir).step) == 6


def test_a_bucket_is_no_folder_of_this_machine():
    """A relative path becomes absolute, as Orbax asks for; the name of a bucket stays as it is."""
    assert str(checkpoint._folder("gs://bucket/run")) == "gs://bucket/run/checkpoints"
    assert str(checkpoint._folder("runs/a")) == os.path.abspath("runs/a/checkpoints")


def test_in_a_bucket_a_checkpoint_counts_when_its_last_file_is_there(tmp_path, monkeypatch):
    """There a folder cannot be renamed when it is whole: it has its final name from the start."""
    _saved(tmp_path, 3, 5)
    folder = epath.Path(tmp_path / "checkpoints")
    whole = {"3": True, "5": False}
    monkeypatch.setattr(
        checkpoint.ocp.utils, "is_checkpoint_finalized", lambda path: whole[path.name]
    )
    assert checkpoint._complete_steps(folder) == [3]


def test_only_this_file_knows_the_checkpoint_library():
    package = pathlib.Path(checkpoint.__file__).parents[1]
    knowing = [p.name for p in package.rglob("*.py") if "import orbax" in p.read_text()]
    assert knowing == ["checkpoint.py"]
