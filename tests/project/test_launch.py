"""The scripts in launch/: the commands they would run, word for word, and that the words arrive."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from paths import ROOT
from tiny_pretraining import write_run

from emu3_jax.data.tokens.records import open_dataset

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
NODE = ["--name=emu3", "--zone=us-east5-a"]
TRAIN = ["train", "--config=configs/a.py", "--workdir=gs://bucket/a run"]
ON_GCLOUD = ["gcloud", "compute", "tpus", "queued-resources"]
ON_ALL = ["--zone=us-east5-a", "--node=all", "--worker=all"]


def launch(script, *words, code=0, **environment):
    result = subprocess.run(
        ["bash", str(ROOT / "launch" / script), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "VENV": sys.prefix} | environment,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result


def dry(script, *words, **environment):
    """The commands that a script would run, each as its list of words."""
    return [shlex.split(line) for line in launch(script, *words, **environment).stdout.splitlines()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_syntax(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_secrets(path):
    text = path.read_text().lower()
    assert not [word for word in ("api_key", "password", "secret", "key-file") if word in text]


def _path_without_python(folder):
    folder.mkdir()
    for name in "bash cat cksum cp cut dirname find mkdir sort tail touch".split():
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.mark.parametrize(
    "found, expected",
    [
        ({}, ""),
        ({"path/python3.39": None}, ""),  # a shim that refuses to run
        ({"path/python3.39": "39", "path/python3.38": "38"}, "of path/python3.39"),
        ({"path/python3.39": None, "pyenv/versions/3.38.1/bin/python3": "38"},
         "of pyenv/versions/3.38.1/bin/python3"),
        ({"pyenv/versions/3.8.18/bin/python3": ""}, ""),  # too old: it prints nothing
    ],
    ids=["none", "refuses", "two", "pyenv", "old"],
)  # fmt: skip
def test_the_newest_python_is_one_that_runs(tmp_path, found, expected):
    """On a path with only the stand-ins: each prints its minor version and its name, or fails."""
    tools = _path_without_python(tmp_path / "path")
    for name, minor in found.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        answer = {None: "exit 127", "": ""}.get(minor, f"echo {minor} of {name}")
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    result = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c",
         'source "$0"; newer_python', str(ROOT / "launch/setup.sh")],
        capture_output=True, text=True, check=True,
        env={"PATH": str(tools), "VENV": sys.prefix, "PYENV_ROOT": str(tmp_path / "pyenv")},
    )  # fmt: skip
    assert result.stdout.strip() == expected


# A Python 3.MINOR in which nothing but environments and pytest exists; its tests end with CODE.
FAKE_PYTHON_3 = r"""#!/usr/bin/env bash
case "$*" in
    *ensurepip*) echo "MINOR $0" ;;
    *version_info\[:2\]*) echo 3.MINOR ;;
    *version_info\[1\]*) echo MINOR ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    "-m pytest"*) echo "MINOR: ${@: -1}" && exit CODE ;;
esac
"""


@pytest.mark.parametrize(
    "pythons, code, lines",
    [
        ({"11": 0}, 0, ["11: --own"]),
        ({"11": 3}, 3, ["11: --own"]),
        ({"11": 0, "39": 0}, 0, ["11: --own", "39: tests/interop/test_torch_pickle.py"]),
        ({"11": 0, "39": 4}, 4, ["11: --own", "39: tests/interop/test_torch_pickle.py"]),
        ({"11": 3, "39": 0}, 3, ["11: --own"]),
    ],
)
def test_ci_runs_all_tests_and_a_part_on_the_newest_python(tmp_path, pythons, code, lines):
    """The exit code and the last line are those of the part that failed, if one did."""
    for folder in ("launch", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "requirements-test.txt").touch()
    for file in (ROOT / "tests").glob("**/test_*.py"):  # each that the script names must be there
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    tools = _path_without_python(tmp_path / "path")
    for minor, ends in pythons.items():
        python = tools / ("python3" if minor == "11" else f"python3.{minor}")
        python.write_text(FAKE_PYTHON_3.replace("MINOR", minor).replace("CODE", str(ends)))
        python.chmod(0o755)
    environment = {"PATH": str(tools), "PYENV_ROOT": str(tmp_path)}
    result = subprocess.run(
        [shutil.which("bash"), str(tmp_path / ".ci/run"), "--own"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    said = result.stdout.splitlines()
    assert [line for line in said if ": " in line] == lines and said[-1] == lines[-1]
    assert result.returncode == code, result.stderr
    assert any("No Python newer" in line for line in said) == ("39" not in pythons)
    assert (tmp_path / ".venv-newest/3.39/bin/python").exists() == (len(lines) == 2)


def test_local_pod_tells_each_process_its_part():
    words = [f"{sys.prefix}/bin/python", "-m", "emu3_jax.train", *TRAIN[1:]]
    common = ["--coordinator=localhost:1234", "--processes=2"]
    commands = dry("local_pod.sh", "--processes=2", "--port=1234", "--dry_run", *TRAIN)
    assert commands == [[*words, *common, f"--process={i}"] for i in range(2)]
    commands = dry("local_pod.sh", "--processes=3", "--dry_run", "tokenize", "--config=a.py")
    parts = [[f"--config.worker={i}", "--config.workers=3"] for i in range(3)]
    assert [command[2:] for command in commands] == [
        ["emu3_jax.tokenize", "--config=a.py", *part] for part in parts
    ]


def test_local_pod_runs_and_passes_on_what_goes_wrong(tmp_path):
    """Two workers tokenize one corpus; then both refuse to do it with another config."""
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}\n')
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=''):\n"
        f"    return ConfigDict(dict(output='', corpus={str(tmp_path)!r}, items_per_shard=1,\n"
        "        splits=dict(train=('a.jsonl',)), text_tokenizer='bytes', video_format='paper',\n"
        "        worker=0, workers=1))\n"
    )
    words = ["tokenize", f"--config={tmp_path}/config.py", f"--config.output={tmp_path}/out"]
    launch("local_pod.sh", *words)
    assert open_dataset(tmp_path / "out/train").info.counts["text"].records == 2
    result = launch("local_pod.sh", *words, "--config.video_format=univla", code=2)
    for index in range(2):
        assert f"[{index}] Error: {tmp_path}/out/train: was made with video_format" in result.stdout


@pytest.mark.slow
def test_local_pod_trains(tmp_path):
    """Ends with a checkpoint on request, and continues from it."""
    config = write_run(tmp_path, 16, **{"run.mesh.data": 2, "run.mesh.fsdp": 4})
    words = ["train", f"--config={config}", f"--workdir={tmp_path}/run"]
    words += ["--config.evaluation.0.every=0", "--config.run.checkpoint.every=1000000"]
    command = ["bash", str(ROOT / "launch/local_pod.sh"), *words, "--config.run.steps=1000000"]
    environment = {**os.environ, "VENV": sys.prefix, "JAX_NUM_CPU_DEVICES": "4"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("[0] step 5/"):
                process.terminate()
                break
        rest = process.stdout.read()
    assert process.returncode == 143, rest
    step = int(re.search(r"\[0\] interrupted: saved step (\d+)", rest)[1])
    more = [*words, f"--config.run.steps={step + 2}", "--allow_changes"]
    rest = launch("local_pod.sh", *more, JAX_NUM_CPU_DEVICES="4").stdout
    assert f"[0] step {step + 1}/{step + 2}" in rest and "[1] step" not in rest


def test_slurm_starts_one_process_a_node(tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\n")
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}
    job |= {"SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (command,) = dry("slurm.sh", "--dry_run", *TRAIN, **job)
    assert command[:4] == ["srun", "--kill-on-bad-exit=0", "bash", "-c"]
    assert shlex.split(command[4]) == [
        "exec", ".venv/bin/python", "-m", "emu3_jax.train", *TRAIN[1:],
        "--coordinator=node7:32345", "--processes=2", "--process=$SLURM_PROCID",
    ]  # fmt: skip
    assert "under sbatch, or with --dry_run" in launch("slurm.sh", *TRAIN, code=1).stderr


def test_xpk_starts_again_what_may_succeed():
    options = ["--cluster=c", "--zone=z", "--name=n", "--type=v5p-512", "--image=gcr.io/p/i:1"]
    (command,) = dry("xpk.sh", *options, "--slices=2", "--dry_run", *TRAIN)
    assert command[:-1] == [
        "xpk", "workload", "create", "--cluster=c", "--zone=z", "--workload=n",
        "--tpu-type=v5p-512", "--num-slices=2", "--max-restarts=50",
        "--restart-on-exit-codes=1,3", "--termination-grace-period-seconds=300",
        "--docker-image=gcr.io/p/i:1",
    ]  # fmt: skip
    line = command[-1].removeprefix("--command=")
    assert shlex.split(line) == [
        "exec", "python", "-m", "emu3_jax.train", *TRAIN[1:], "--coordinator=auto",
    ]  # fmt: skip
    *code, command = dry("xpk.sh", *options[:-1], "--dry_run", *TRAIN)
    assert [words[0] for words in code] == ["git", "tar"]
    assert "--script-dir=TEMPORARY_FOLDER/emu3_jax" in command
    assert " && pip install --quiet -r requirements-tpu.txt && exec python -m emu3" in command[-1]


def test_queued_resources_are_asked_for_and_given_back():
    create = [*ON_GCLOUD, "create", "emu3", "--zone=us-east5-a", "--accelerator-type=v5p-512"]
    create += ["--runtime-version=v2-alpha-tpuv5"]
    more = ["--type=v5p-512", "--spot", "--service_account=a@b.c"]
    assert dry("queued_resource.sh", "create", "--dry_run", *NODE, *more) == [
        [*create, "--node-id=emu3", "--spot", "--service-account=a@b.c"]
    ]
    assert dry("queued_resource.sh", "create", "--dry_run", *NODE, more[0], "--slices=2") == [
        [*create, "--node-count=2", "--node-prefix=emu3"]
    ]
    assert dry("queued_resource.sh", "delete", "--dry_run", *NODE) == [
        [*ON_GCLOUD, "delete", "emu3", "--zone=us-east5-a", "--force"]
    ]
    assert dry("queued_resource.sh", "stop", "--dry_run", *NODE) == [
        [*ON_GCLOUD, "ssh", "emu3", *ON_ALL, "--command=kill -TERM $(cat emu3_jax/run.pid)"]
    ]


FAKE_GCLOUD = r"""#!/usr/bin/env bash
# One host: `ssh` runs the command in its home, with the .venv that is there, `scp` copies into it.
case "$4" in
    describe) echo ACTIVE ;;
    scp) cp "$5" "$HOST_HOME/" ;;
    ssh) for word in "$@"; do
        [[ "$word" != --command=* ]] ||
            (cd "$HOST_HOME" && env -u VENV bash -c "${word#--command=}")
    done ;;
esac
"""
FAKE_PYTHON = '#!/usr/bin/env bash\n[[ "$2" != emu3_jax.* ]] || printf "<%s>" "$@"\n'


@pytest.fixture
def repository(tmp_path):
    """A small repository with the scripts, since hosts run a commit."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "launch", folder / "launch")
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, folder)
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


@pytest.mark.parametrize("command", ["train", "tokenize"])
def test_the_words_arrive_on_the_host(command, repository, tmp_path):
    """Through the script's shell, the local gcloud, the host's shell and the detached one."""
    home, tools = tmp_path / "home", tmp_path / "tools"
    curl = '#!/bin/sh\ncase "$3" in *number) echo 1 ;; *) printf a,b,c,d ;; esac\n'
    fakes = {
        tools / "gcloud": FAKE_GCLOUD,
        tools / "curl": curl,
        home / "emu3_jax/.venv/bin/python": FAKE_PYTHON,
    }
    for path, text in fakes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    words = [command, "--config=a.py", "--config.corpus=it's $HOME"]
    launch(
        repository / "launch/queued_resource.sh",
        *["start", *NODE, *words],
        PATH=f"{tools}:{os.environ['PATH']}",
        HOST_HOME=str(home),
        PIP_NO_INDEX="1",  # nothing is installed, whatever goes wrong
    )
    host = home / "emu3_jax"
    own = ["--coordinator=auto"]
    if command == "tokenize":
        own = ["--config.worker=1", "--config.workers=4"]
    expected = ["-m", f"emu3_jax.{command}", *words[1:], *own]
    expected = "".join(f"<{word}>" for word in expected)
    give_up = time.monotonic() + 600
    while (said := (host / "run.log").read_text()) != expected and time.monotonic() < give_up:
        time.sleep(0.01)  # the command runs on after the script has ended
    assert said == expected
    assert (host / "run.pid").read_text().strip().isdigit()
    assert (host / ".git").exists() and (host / "launch/commands.sh").exists()


@pytest.mark.parametrize(
    "script, words, message",
    [
        ("local_pod.sh", ["frain"], "expected train or tokenize after the options, found frain"),
        ("local_pod.sh", ["--processes=0", "train"], "--processes must be at least 1"),
        ("local_pod.sh", [], "no command; give train or tokenize with its flags"),
        ("xpk.sh", ["--cluster=c", "train"], "--zone is needed"),
        ("queued_resource.sh", ["begin"], "the first word must be one of create, start"),
        ("queued_resource.sh", ["create", *NODE], "create needs --type=v4-N"),
        ("queued_resource.sh", ["log"], "log needs --name and --zone"),
        ("docs.sh", ["--bild"], "expected --build or --links, found --bild"),
    ],
)
def test_wrong_words_are_one_sentence(script, words, message):
    error = launch(script, *words, code=1).stderr
    assert message in error and len(error.splitlines()) == 1
