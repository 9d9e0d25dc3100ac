"""Environments of evaluation harnesses: each has its packages in a folder of its own."""

import os
import pathlib
import subprocess
import sys
import venv

import pytest
from paths import ROOT

REQUIREMENTS = ROOT / "tests" / "evaluate" / "harnesses"
# torch alone has gigabytes.
INSTALL_SECONDS = 3600


def python(name: str, *harness: str) -> pathlib.Path:
    """The Python of a harness's environment, which is made at the first call.

    Args:
      name: `requirements-NAME.txt` are the packages that the harness imports.
      *harness: the harness itself, without the packages that it states: it has many that are not
        needed to ask a model.

    The test is skipped if pip cannot get them. HARNESS_ENVIRONMENTS is the folder of all
    environments (default: .cache/harnesses in the project).
    """
    requirements = REQUIREMENTS / f"requirements-{name}.txt"
    base = pathlib.Path(os.environ.get("HARNESS_ENVIRONMENTS", ROOT / ".cache" / "harnesses"))
    found, done = base / name / "bin" / "python", base / name / "installed.txt"
    content = "\n".join((requirements.read_text(), *harness))
    if done.exists() and done.read_text() == content:
        return found
    venv.create(base / name, with_pip=True, clear=True)
    _install(found, "-r", str(requirements))
    if harness:
        _install(found, "--no-deps", *harness)
    # Behind its own packages: ours, JAX among them.
    (site,) = (base / name).glob("lib/*/site-packages")
    (site / "ours.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    done.write_text(content)
    return found


def _install(python: pathlib.Path, *words: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", *words]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
    )
    if ended.returncode:
        pytest.skip(f"pip cannot install {' '.join(words)}: {ended.stderr.strip()[-300:]}")


def run(python: pathlib.Path, where: pathlib.Path, paths: list, *words: str) -> str:
    """What a command prints, errors last; it sees `paths` and the project, and no network."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(where / "huggingface"),
        "JAX_PLATFORMS": "cpu",
    }
    ended = subprocess.run(
        [str(python), *words],
        cwd=where, env=env, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said[-5000:]
    return said
