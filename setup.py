"""What pyproject.toml cannot say: configs/ and assets/ inside the package, extras from files."""

import pathlib

from setuptools import find_namespace_packages, find_packages, setup

ROOT = pathlib.Path(__file__).parent
# Each from requirements-NAME.txt. Not among them: packages that are only read
# (requirements-photographs.txt), which are installed into a folder of their own.
EXTRAS = (
    "gpu", "tpu", "aot", "ray", "tfds", "test", "perceptual", "scorers", "parquet", "questions",
    "docs", "demo",
)  # fmt: skip
# Installed inside the package: as top-level packages they could clash with others of that name.
SHIPPED = {
    f"emu3_jax._shipped.{name}": name.replace(".", "/")
    for name in find_namespace_packages(str(ROOT), include=["configs*", "assets*"])
    if "__pycache__" not in name
}


def requirements(name: str) -> list[str]:
    """The lines of a requirements file, with those of the files that it includes."""
    lines = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            lines += requirements(line.removeprefix("-r ").strip())
        elif line.strip() and not line.startswith("#"):
            lines.append(line)
    return lines


BASE = set(requirements("requirements.txt"))

setup(
    packages=[*find_packages(str(ROOT), include=["emu3_jax*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={name: ["*"] for name in SHIPPED}
    | {"emu3_jax.evaluate.tables": ["published/*.json"]},
    extras_require={
        extra: [r for r in requirements(f"requirements-{extra}.txt") if r not in BASE]
        for extra in EXTRAS
    },
)
