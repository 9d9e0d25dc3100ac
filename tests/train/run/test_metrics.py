"""What is logged can be read back, after kills and resumes as well."""

import json
import math
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax.train.run import metrics as metrics_lib
from emu3_jax.train.run.metrics import (
    Accumulator,
    LogConfig,
    MetricsWriter,
    Throughput,
    duration,
    means,
    read_metrics,
)

QUIET = LogConfig(tensorboard=False)


def _write(workdir, rows, start_step=0):
    writer = MetricsWriter(workdir, QUIET, {}, start_step)
    for step, values in rows:
        writer.write(step, values)
    writer.close()


def test_lines_are_json_and_bad_numbers_are_null(tmp_path):
    _write(tmp_path, [(1, {"loss": np.float32(0.5), "worse": math.nan, "worst": math.inf})])
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": 0.5, "worse": None, "worst": None}
    assert "NaN" not in line


def test_lines_of_one_step_are_merged(tmp_path):
    _write(tmp_path, [(2, {"loss": 1.0}), (2, {"psnr": 3.0}), (3, {"loss": 0.5})])
    assert read_metrics(tmp_path) == [
        {"step": 2, "loss": 1.0, "psnr": 3.0},
        {"step": 3, "loss": 0.5},
    ]


def test_a_resumed_run_supersedes_what_was_logged_after_its_checkpoint(tmp_path):
    _write(tmp_path, [(n, {"loss": float(n)}) for n in (1, 2, 3, 4, 5, 6)])
    _write(tmp_path, [(n, {"loss": n + 0.5}) for n in (4, 6)], start_step=3)
    rows = [(row["step"], row["loss"]) for row in read_metrics(tmp_path)]
    assert rows == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5), (6, 6.5)]


def test_what_is_added_to_the_step_a_run_resumed_from_joins_its_row(tmp_path):
    """An evaluation that was not there before comes first of all after a resume."""
    _write(tmp_path, [(n, {"loss": float(n)}) for n in (4, 5, 6, 7)])
    _write(tmp_path, [(5, {"psnr": 9.0}), (6, {"loss": 6.5})], start_step=5)
    assert read_metrics(tmp_path) == [
        {"step": 4, "loss": 4.0}, {"step": 5, "loss": 5.0, "psnr": 9.0}, {"step": 6, "loss": 6.5},
    ]  # fmt: skip


def test_going_back_within_a_run_supersedes_too(tmp_path):
    writer = MetricsWriter(tmp_path, QUIET, {})
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.rewind(1)
    writer.write(4, {"loss": 4.5})  # the next line that is due may be a later one
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 4]


def test_a_writer_that_has_nothing_to_say_leaves_no_trace(tmp_path):
    MetricsWriter(tmp_path / "run", LogConfig(), {}).close()
    assert not (tmp_path / "run").exists()


def test_a_line_cut_by_a_kill_costs_itself_alone(tmp_path):
    _write(tmp_path, [(1, {"loss": 1.0}), (2, {"loss": 2.0})])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    _write(tmp_path, [(2, {"loss": 2.5}), (3, {"loss": 3.0})], start_step=1)
    rows = [(row["step"], row["loss"]) for row in read_metrics(tmp_path)]
    assert rows == [(1, 1.0), (2, 2.5), (3, 3.0)]


def test_a_directory_without_metrics(tmp_path):
    with pytest.raises(
        ValueError, match="metrics.jsonl does not exist: no run has written a log there"
    ):
        read_metrics(tmp_path)


def test_means_over_steps_leave_out_what_counted_nothing():
    accumulator = Accumulator()
    for total, count in ((6.0, 2.0), (2.0, 2.0)):
        zero = jnp.zeros(())
        accumulator.add({"a": (jnp.float32(total), jnp.float32(count)), "b": (zero, zero)})
    assert means(accumulator.take()) == {"a": 2.0}
    assert accumulator.take() is None


def test_tensorboard_gets_the_finite_numbers_and_images(tmp_path):
    writer = MetricsWriter(tmp_path, LogConfig(), {})
    writer.write(3, {"loss": 0.25, "bad": math.nan})
    writer.write_image(3, "sample", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    events = [e for e in _events(tmp_path / "tensorboard") if e.summary.value]
    assert [(e.step, e.summary.value[0].tag) for e in events] == [(3, "loss"), (3, "sample")]
    assert events[0].summary.value[0].simple_value == 0.25
    assert events[1].summary.value[0].image.height == 4


def _events(folder):
    """The records of an event file: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content, start = file.read_bytes(), 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        yield Event.FromString(content[start + 12 : start + 12 + length])
        start += 12 + length + 4


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append((options["project"], options["id"], options["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        writer = MetricsWriter(tmp_path, LogConfig(tensorboard=False, wandb_project="p"), {})
        writer.write(step, {"loss": 1.0})
        writer.close()
    assert calls[0] == calls[3] and calls[0][0] == "p" and calls[0][2] == "allow"
    assert calls[1:3] == [(1, {"loss": 1.0}), "finished"]


def test_wandb_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="log.wandb_project='p' needs the package wandb: pip"):
        MetricsWriter(tmp_path, LogConfig(wandb_project="p"), {})


def test_rate_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics_lib.time, "perf_counter", lambda: now[0])
    throughput = Throughput(start_step=10, total_steps=30, units_per_step=5)
    now[0] += 6.0
    throughput.pause(4.0)
    assert throughput.rate(20) == (25.0, 2.0)  # 10 steps in 2 seconds, 10 to go
    now[0] += 1.0
    assert throughput.rate(21) == (5.0, 9.0)


@pytest.mark.parametrize(
    "seconds, text",
    [(9.9, "9s"), (250, "4m 10s"), (3900, "1h 05m"), (math.inf, "?"), (0, "0s")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_utilisation_is_a_share_of_the_peak_where_it_is_known(monkeypatch):
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(metrics_lib.jax, "devices", lambda: [device])
    monkeypatch.setattr(metrics_lib.jax, "device_count", lambda: 2)
    assert metrics_lib.mfu(197e12) == pytest.approx(0.5)
    device.device_kind = "cpu"
    assert metrics_lib.mfu(197e12) is None


def test_memory_of_each_device_that_tells(monkeypatch):
    tells = types.SimpleNamespace(id=4, memory_stats=lambda: {"peak_bytes_in_use": 3 << 30})
    silent = types.SimpleNamespace(id=5, memory_stats=lambda: None)
    monkeypatch.setattr(metrics_lib.jax, "local_devices", lambda: [tells, silent])
    assert metrics_lib.memory() == {"memory/device_4_peak_gib": 3.0}


def test_log_interval_must_be_positive():
    with pytest.raises(ValueError, match="log.every must be 1 or more, got 0"):
        LogConfig(every=0)
