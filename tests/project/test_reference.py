"""The reference: everything public is documented, and the generated pages say so."""

import os
import subprocess
import sys

from paths import ROOT

GENERATOR = ROOT / "docs" / "generator"


def test_everything_public_is_documented():
    """Flags of commands, keys of configs, and the Python face with its methods and fields."""
    path = os.pathsep.join([str(ROOT), str(GENERATOR)])
    done = subprocess.run(
        [sys.executable, GENERATOR / "site_pages.py", "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
