"""The quickstart, tiny, with a stop on the way."""

import json
import os
import signal

import pytest
from paths import ROOT
from small_corpus import write_small_corpus

from emu3_jax.pipeline.runner import Stopped, read_json
from emu3_jax.quickstart import stages
from emu3_jax.quickstart.__main__ import run
from emu3_jax.quickstart.stages import Plan


def test_an_input_that_is_missing_is_named_before_any_work(tmp_path):
    plan = Plan(directory=tmp_path / "out", vision_tokenizer=tmp_path / "none")
    with pytest.raises(ValueError, match="holds no vision tokenizer"):
        run(plan)
    assert not (tmp_path / "out").exists()


def test_the_shipped_model_is_left_out_where_it_is_not_there(tmp_path):
    plan = Plan(shipped=tmp_path / "none")
    items = {"images": [{"text": "a"}], "clips": [], "captions": []}
    names = [stage.name for stage in stages.evaluation(plan) + stages.sampling(plan, items)]
    assert names == ["evaluate_vision_tokenizer", "evaluate_trained", "sample_trained_images"]


# ------------------------------------------------------------------ all of it, with tiny parts

TINY_CONFIG = """
from configs import quickstart

def get_config(arg=""):
    config = quickstart.get_config(arg)
    config.model.update(dict(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2,
                             num_kv_heads=2, head_dim=8))
    config.run.log.every = 1
    config.run.log.tensorboard = False
    config.data.batch_size = 2
    config.evaluation = ()
    return config
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The quickstart's plan with a small corpus, a random vision tokenizer and a tiny model."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from emu3_jax.interop.vision import tokenizer_files
    from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

    folder = tmp_path_factory.mktemp("quickstart")
    config = VisionTokenizerConfig(
        codebook_size=2048, ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=2,
        attn_resolutions=(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        VisionTokenizer(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) - 0.4, shapes)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    tokenizer_files.save(folder / "vision", config, variables)
    write_small_corpus(folder / "corpus.zip")
    (folder / "tiny.py").write_text(TINY_CONFIG)
    return Plan(
        directory=folder / "run",
        config=folder / "tiny.py",
        steps=5,
        corpus_zip=folder / "corpus.zip",
        vision_tokenizer=folder / "vision",
        tokenize_options=("--config.image_batch=4",),
        shipped=folder / "none",
        limit=4,
        images=2,
        clips=1,
        captions=2,
    )


def test_from_images_to_report_with_a_stop_on_the_way(plan, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(
        "JAX_COMPILATION_CACHE_DIR",
        os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")),
    )
    lines = []

    def stop_after_first_part(line):
        lines.append(line)
        if "resumed from step" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        run(plan, stop_after_first_part)
    assert not plan.report.exists()
    report = run(plan, lines.append)
    page = report.read_text(encoding="utf-8")
    for part in ("emu3_jax quickstart", "SIGTERM", "python -m emu3_jax.evaluate", "data:image/"):
        assert part in page
    steps = [json.loads(line)["step"] for line in (plan.model / "metrics.jsonl").open()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5]
    # Resumed twice, perhaps from the same step: the stop may come before the next step ends.
    assert read_json(plan.directory / "resumed.json")[0] >= 2
    assert (plan.directory / "samples.png").stat().st_size > 0

    before = report.stat().st_mtime_ns
    lines.clear()
    run(plan, lines.append)
    assert report.stat().st_mtime_ns == before
    assert all("done before" in line for line in lines)
