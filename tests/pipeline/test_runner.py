"""Pipelines: stages are reused, resumed or run again as they should."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from paths import ROOT

from emu3_jax.pipeline.runner import Runner, StageError, Stopped, locked, read_json
from emu3_jax.pipeline.stage import Stage

# Stands in for training: counts to ten in a file, saves on a signal, continues from there. The
# first start ends only on a signal.
COUNTER = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(exist_ok=True)
saved = folder / "saved"
start = int(saved.read_text()) if saved.exists() else 0
stop = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: stop.append(number))
if start:
    print(f"resumed from step {start}", flush=True)
for step in range(start + 1, 11):
    (folder / "steps").open("a").write(f"{step} ")
    print(f"step {step}/10 loss 1.0", flush=True)
    time.sleep(0.05)
    while step == 9 and not start and not stop:
        time.sleep(0.05)
    if stop or step == 10:
        saved.write_text(str(step))
        break
sys.exit(128 + stop[0] if stop else 0)
"""
WRITER = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write(sys.argv[2])"


def writes(folder, name, text="x", **rest):
    path = folder / name
    return Stage(name, name, ("-c", WRITER, str(path), text), outputs=(path,), **rest)


def counts(folder, name, interrupt_at, outputs=True, after=()):
    model = folder / "model"
    return Stage(
        name, name, ("-c", COUNTER, str(model)), after=after,
        outputs=(model,) if outputs else (), resumable=True, interrupt_at=interrupt_at,
    )  # fmt: skip


def run_stages(folder, chosen, say=lambda line: None):
    with locked(folder) as lock:
        runner = Runner(folder, lock, say)
        runner.run(chosen, 1, len(chosen))
    return runner


def test_a_second_run_reuses_what_is_done_and_redoes_what_has_changed(tmp_path):
    source = tmp_path / "source"
    source.write_text("one")
    chosen = [
        writes(tmp_path, "a", inputs=(source,)),
        writes(tmp_path, "b"),
        writes(tmp_path, "c", after=("a",)),
    ]
    assert run_stages(tmp_path, chosen).ran == {"a", "b", "c"}
    assert run_stages(tmp_path, chosen).ran == set()
    source.write_text("two")
    assert run_stages(tmp_path, chosen).ran == {"a", "c"}
    (tmp_path / "b").unlink()
    assert run_stages(tmp_path, chosen).ran == {"b"}
    chosen[2] = writes(tmp_path, "c", "y", after=("a",))
    assert run_stages(tmp_path, chosen).ran == {"c"}
    assert [(tmp_path / name).read_text() for name in "abc"] == ["x", "x", "y"]


def test_training_is_interrupted_once_and_resumed(tmp_path):
    chosen = [
        counts(tmp_path, "train_1", 4),
        counts(tmp_path, "train_2", 0, outputs=False, after=("train_1",)),
    ]
    run_stages(tmp_path, chosen)
    assert (tmp_path / "model" / "steps").read_text().split() == [str(n) for n in range(1, 11)]
    (resumed,) = read_json(tmp_path / "resumed.json")
    assert 4 <= resumed < 10
    assert run_stages(tmp_path, chosen).ran == set()


def test_a_failed_stage_names_its_log_and_is_tried_again(tmp_path):
    bad = Stage("bad", "A bad stage", ("-c", "print('why'); raise SystemExit(3)"))
    with pytest.raises(StageError, match=r"A bad stage.*exit 3.*bad\.log"):
        run_stages(tmp_path, [bad])
    assert "why" in (tmp_path / "logs" / "bad.log").read_text()
    good = Stage("bad", "A bad stage", ("-c", "pass"))
    assert run_stages(tmp_path, [good]).ran == {"bad"}


def test_a_stopped_stage_that_cannot_continue_begins_again(tmp_path):
    """Samples of two attempts would be numbered on, and shown with the captions of others."""
    path, ready = tmp_path / "a", tmp_path / "ready"
    code = (
        "import sys; open(sys.argv[1], 'x'); import os; sys.exit(not os.path.exists(sys.argv[2]))"
    )
    stage = Stage("a", "a", ("-c", code, str(path), str(ready)), outputs=(path,))
    with pytest.raises(StageError):
        run_stages(tmp_path, [stage])
    assert path.exists()
    ready.touch()
    lines = []
    run_stages(tmp_path, [stage], lines.append)
    assert any("was stopped before: running again" in line for line in lines)


def test_two_processes_do_not_share_a_directory(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another process"):
        with locked(tmp_path):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_by_the_user_loses_nothing_but_the_step_in_flight(tmp_path, number):
    chosen = [writes(tmp_path, "a"), counts(tmp_path, "train", 0)]

    def stop_at_three(line):
        if "step 3/" in line:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped):
        run_stages(tmp_path, chosen, stop_at_three)
    saved = int((tmp_path / "model" / "saved").read_text())
    assert 3 <= saved < 10
    assert (tmp_path / "model" / "steps").read_text().split()[-1] == str(saved)
    assert run_stages(tmp_path, chosen).ran == {"train"}
    assert (tmp_path / "model" / "steps").read_text().split() == [str(n) for n in range(1, 11)]


def test_a_killed_pipeline_leaves_no_second_writer(tmp_path):
    # SIGKILL cannot be forwarded; the command left running holds the lock until it ends.
    end = tmp_path / "end"
    command = f"""if True:
        import pathlib, time
        print("there", flush=True)
        while not pathlib.Path({str(end)!r}).exists():
            time.sleep(0.05)
    """
    program = textwrap.dedent(f"""
        import pathlib
        from emu3_jax.pipeline.runner import Runner, locked
        from emu3_jax.pipeline.stage import Stage
        folder = pathlib.Path({str(tmp_path)!r})
        with locked(folder) as lock:
            Runner(folder, lock, lambda line: print(line, flush=True)).run(
                [Stage("s", "s", ("-c", {command!r}))], 1, 1)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.strip() == b"there":
            break
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match="left running"), locked(tmp_path):
        pass
    end.touch()
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        try:
            with locked(tmp_path):
                return
        except ValueError:
            time.sleep(0.2)
    pytest.fail("the lock outlived the command")
