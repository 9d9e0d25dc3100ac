"""The README's commands for your own data, on a folder of a few images."""

import json
import re
import subprocess
import sys

import numpy as np
from paths import ROOT

from emu3_jax.data import media

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = re.search(r"## On your own data\n(.*?)\n\*\*On one GPU", README, re.DOTALL)
# So small that compiling takes most of the time; all else as in the README.
SMALL = (
    "--config.run.steps=2", "--config.model.hidden_size=32", "--config.model.intermediate_size=32",
    "--config.model.num_layers=1", "--config.model.num_heads=1", "--config.model.num_kv_heads=1",
    "--config.model.head_dim=32", "--config.run.log.tensorboard=False",
)  # fmt: skip


def commands(folder):
    """The module and arguments of each command of the section, with paths in `folder`."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", SECTION[1], re.DOTALL):
        for line in block.replace("\\\n", " ").strip().splitlines():
            words = re.findall(r'(?:[^\s"]|"[^"]*")+', line)
            assert words[:2] == ["python", "-m"]
            words = [word.replace('"', "") for word in words[2:]]
            here = (r"(^|[=:])(data|runs)(?=/|$)", rf"\g<1>{folder}/\2")
            found.append([re.sub(*here, word) for word in words])
    return found


def test_the_commands_of_the_readme_take_a_folder_to_images(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 4)):
        rows = []
        for i in range(count):
            shade = rng.integers(0, 256, 3)
            name, caption = f"{split}{i}.png", f"colour {shade.tolist()}"
            media.write_png(data / name, np.full((48, 80, 3), shade, np.uint8))
            rows.append({"id": str(i), "image": name, "text": caption})
        (data / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    listed = commands(tmp_path)
    assert [words[0].split(".")[1] for words in listed] == [
        "text", "tokenize", "train", "evaluate", "generate",
    ]  # fmt: skip
    for words in listed:
        if words[0] == "emu3_jax.train":
            words = [word for word in words if "run.steps" not in word] + list(SMALL)
        result = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stderr}"
    runs = tmp_path / "runs"
    stated = json.loads((runs / "tokens" / "train" / "dataset.json").read_text())
    assert stated["counts"]["image"]["records"] == 12
    assert list((runs / "mine" / "evaluation").glob("*.json"))
    image = next((runs / "mine" / "samples").glob("*.png"))
    assert media.read_image(image).shape == (64, 64, 3)
