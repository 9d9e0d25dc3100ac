"""Two processes draw, judge and learn as one: real subprocesses, the real command."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from paths import ROOT
from tiny_policy import MODEL, write_model

from emu3_jax.config import to_values
from emu3_jax.train.run.metrics import read_metrics

CONFIG = """
import json
from ml_collections import ConfigDict
def get_config():
    return ConfigDict(json.loads({values!r}))
"""


def _run(folder, workdir, processes):
    """Trains on two devices; the errors of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    support = [str(ROOT / "tests/support" / name) for name in ("models", "data")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *support]),
        "JAX_NUM_CPU_DEVICES": str(2 // processes),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [sys.executable, "-m", "emu3_jax.train", f"--config={folder / 'config.py'}"]
    command += [f"--workdir={folder / workdir}"]
    joined = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"] * (processes > 1)
    started = [
        subprocess.Popen(
            command + joined + [f"--process={index}"] * (processes > 1),
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(processes)
    ]  # fmt: skip
    errors = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, errors


@pytest.mark.slow
def test_two_processes_do_as_one(tmp_path):
    (tmp_path / "words.txt").write_text("".join(f"no {i}\n" for i in range(5)))
    scorers = [{"scorer": "likelihood"}, {"scorer": "tiny_policy:LowCodes"}]
    values = dict(
        task="grpo",
        model=to_values(MODEL),
        data=dict(prompts=str(tmp_path / "words.txt"), height=2, width=3, batch_size=8,
                  sequence_length=24, candidates=4),
        rollouts=dict(scorers=scorers),
        loss=dict(chunk_tokens=16),
        start=dict(transformer=write_model(tmp_path / "policy")),
        run=dict(steps=3, mesh=dict(data=1, fsdp=2), log=dict(every=1, tensorboard=False),
                 optimizer=dict(learning_rate=0.01, warmup_steps=0, schedule="constant")),
    )  # fmt: skip
    (tmp_path / "config.py").write_text(CONFIG.format(values=json.dumps(values)))
    rows = {}
    for name, processes in (("one", 1), ("two", 2)):
        _run(tmp_path, name, processes)
        rows[name] = [
            [row[key] for key in sorted(row) if "second" not in key]
            for row in read_metrics(tmp_path / name)
        ]
    assert len(rows["one"]) == 3
    np.testing.assert_allclose(rows["two"], rows["one"], rtol=2e-5, atol=2e-5)
