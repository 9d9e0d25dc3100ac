"""Scorers from files to numbers: by hand from embeddings, on one device and on eight."""

import dataclasses
import types

import clip_files
import jax
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from emu3_jax import sharding
from emu3_jax.config import ConfigError
from emu3_jax.interop.vision import clip_weights, mps_head
from emu3_jax.models.features import clip, mps
from emu3_jax.scorers import clip_images, registry
from emu3_jax.scorers.clip_similarity import ClipSimilarity
from emu3_jax.scorers.clip_tokenizer import ClipTokenizer
from emu3_jax.scorers.scorer import score_all

SIDE, CONTEXT, EMBEDDING = 28, 12, 24
PROMPTS = ["a cat", "a dog &amp; a cat", "a cat", "the garden", "", "a cat", "two dogs"]


def images():
    # The first has 19 columns too many: an odd margin, which two rules round differently.
    random = np.random.RandomState(3)
    shapes = [(30, 51), (28, 28), (64, 20), (29, 31), (40, 40), (15, 16), (90, 91)]
    return [random.randint(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_files.save_with_tokenizer(tmp_path_factory.mktemp("clip") / "model")


def head_file(folder, change=()):
    random = np.random.RandomState(4)
    sizes = [(6, EMBEDDING), (1, 6)]
    tensors = {}
    for number, size in zip((0, 2), sizes, strict=True):
        tensors[f"layers.{number}.weight"] = random.randn(*size).astype(np.float32)
        tensors[f"layers.{number}.bias"] = random.randn(size[0]).astype(np.float32)
    tensors |= dict(change)
    path = folder / "head.safetensors"
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if v is not None}, path)
    return path


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(folder, rule, prompts, activation=""):
    """Unit embeddings [N, D] of both, one item at a time."""
    config, weights = clip_weights.load(folder, activation)
    rows = ClipTokenizer(folder).rows(prompts, CONTEXT)
    texts = [clip.text_embeddings(config, weights, row[None])[0] for row in rows]
    pixels = [rule(image, SIDE)[None] for image in images()]
    found = [clip.image_embeddings(config, weights, one)[0] for one in pixels]
    return unit(np.stack(texts)), unit(np.stack(found)), weights


def scored(**entry):
    (scorer,) = registry.make([entry])
    return scorer.score(PROMPTS, images())


def test_clip_gives_the_cosine(folder):
    texts, pictures, _ = embeddings(folder, clip_images.torchvision_crop, PROMPTS)
    found = scored(scorer="clip", clip=str(folder), batch_size=3)
    assert found.dtype == np.float32
    assert np.abs(found - (texts * pictures).sum(-1)).max() < 1e-5


def test_pickscore_multiplies_by_the_scale(folder):
    texts, pictures, weights = embeddings(folder, clip_images.transformers_crop, PROMPTS)
    found = scored(scorer="pickscore", clip=str(folder))
    expected = np.exp(weights["logit_scale"]) * (texts * pictures).sum(-1)
    assert np.abs(found - expected).max() < 1e-4


def test_hps_pads_and_resolves_entities(tmp_path):
    folder = clip_files.save_with_tokenizer(tmp_path / "gelu", "open_clip")
    clean = [prompt.replace("&amp;", "&") for prompt in PROMPTS]
    texts, pictures, _ = embeddings(folder, clip_images.longest_side, clean)
    found = scored(scorer="hps", clip=str(folder))
    assert np.abs(found - (texts * pictures).sum(-1)).max() < 1e-5


def test_hps_reads_a_bare_file_as_gelu(tmp_path):
    folder = clip_files.save_with_tokenizer(tmp_path / "gelu", "open_clip")
    (folder / "open_clip_config.json").unlink()
    (scorer,) = registry.make(
        [dict(scorer="hps", clip=str(folder / "model.safetensors"), tokenizer=str(folder))]
    )
    assert scorer.model[0].image.activation == "gelu"


def test_aesthetics_read_the_image_alone(folder, tmp_path):
    path = head_file(tmp_path)
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")  # needs none
    try:
        found = scored(scorer="aesthetics", clip=str(folder), head=str(path))
    finally:
        (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    _, pictures, _ = embeddings(folder, clip_images.torchvision_crop, PROMPTS)
    head = safetensors.numpy.load_file(path)
    x = pictures @ head["layers.0.weight"].T + head["layers.0.bias"]
    x = x @ head["layers.2.weight"].T + head["layers.2.bias"]
    assert np.abs(found - x[:, 0]).max() < 1e-4


def mps_file(folder, embedding):
    """A state dict of MPS with golden CLIP and golden attention, widened to the embedding."""
    random = np.random.RandomState(6)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {f"model.{name}": array for name, array in tensors.items()}
    with np.load(GOLDEN / "post_training" / "scores.npz") as stored:
        for key, array in stored.items():
            if key.startswith("mps/state/"):
                shape = [embedding if n == 16 and array.ndim < 2 else n for n in array.shape]
                name = key.removeprefix("mps/state/")
                side = 0 if name.endswith(("to_out.weight", "ff.2.weight")) else 1
                side = 0 if name.endswith(("attn_out.weight", "ff_out.1.weight")) else side
                if array.ndim == 2:
                    shape[side] = embedding
                tensors[f"cross_model.{name}"] = random.randn(*shape).astype(np.float32) / 4
    path = folder / "mps.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def test_mps_compares_each_caption_with_the_condition(tmp_path):
    folder = clip_files.save_with_tokenizer(tmp_path / "mps", "hf_gelu")
    config = folder / "config.json"  # whose end mark is not the tokenizer's
    config.write_text(config.read_text().replace('"eos_token_id": 17', '"eos_token_id": 2'))
    path, condition = mps_file(folder, EMBEDDING), "cat, garden"
    (scorer,) = registry.make([dict(scorer="mps", clip=str(path), condition=condition)])
    found = scorer.score(PROMPTS, images())
    config, tree, head = mps_head.load(path)
    tokenizer = ClipTokenizer(folder)
    rows = tokenizer.rows([*PROMPTS, condition], CONTEXT, pad=tokenizer.end)
    texts = clip.projected(tree, "text", clip.text_hidden(config, tree, rows))
    ends = clip.text_embeddings(config, tree, rows)
    for i, image in enumerate(images()):
        pixels = clip_images.transformers_crop(image, SIDE)[None]
        tokens = clip.projected(tree, "image", clip.image_hidden(config, tree, pixels))[0]
        expected = mps.scores(head, texts[i], ends[i], texts[-1], tokens, tree["logit_scale"])
        assert abs(found[i] - expected) < 1e-4
    fewer = dataclasses.replace(scorer, share=0.95).score(PROMPTS, images())
    assert np.abs(fewer - found).max() > 1e-3


def test_scores_do_not_depend_on_the_mesh_or_the_batch(folder):
    entry = dict(scorer="clip", clip=str(folder))
    one = scored(**entry, batch_size=2)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))):
        eight = scored(**entry, batch_size=3)
    assert np.abs(one - eight).max() < 1e-5


def test_smaller_types_are_near(folder):
    entry = dict(scorer="clip", clip=str(folder))
    exact = scored(**entry)
    for dtype, bound in (("bfloat16", 0.05), ("float16", 0.01)):
        found = scored(**entry, dtype=dtype)
        assert found.dtype == np.float32
        assert 1e-5 < np.abs(found - exact).max() < bound


def test_no_images_have_no_scores(folder):
    (scorer,) = registry.make([dict(scorer="clip", clip=str(folder))])
    found = score_all(scorer, [], [])
    assert found.values_N.shape == (0,) and found.reasons == {}


def test_one_bad_image_costs_only_itself(folder):
    (scorer,) = registry.make([dict(scorer="clip", clip=str(folder), batch_size=4)])
    pictures = images()
    expected = scorer.score(PROMPTS, pictures)
    pictures[3], pictures[6] = np.zeros((4, 4), np.uint8), None
    prompts = [*PROMPTS[:5], "\ud800", PROMPTS[6]]
    found = score_all(scorer, prompts, pictures)
    assert list(found.reasons) == [3, 5, 6]
    assert "clip: an image to score must be uint8 [H, W, 3], found uint8 [4, 4]" in found.reasons[3]
    assert "is no caption" in found.reasons[5]
    assert np.isnan(found.values_N[[3, 5, 6]]).all()
    rest = [0, 1, 2, 4]
    assert np.abs(found.values_N[rest] - expected[rest]).max() < 1e-5


class Brightness:
    """A scorer of one's own, without weights."""

    def __init__(self, name="brightness", power=1.0):
        self.name, self.power = name, power

    def score(self, prompts, images):
        return np.array([image.mean() ** self.power for image in images])


def length(prompts, images):
    return [{"nan": np.nan, "inf": np.inf}.get(prompt, len(prompt)) for prompt in prompts]


def failing(prompts, images):
    if "broken" in prompts:
        raise RuntimeError("no scorer there\nsecond line")
    return np.ones(len(prompts), np.int32)


def test_scorers_of_ones_own_by_import_path():
    made = registry.make(
        [
            dict(scorer=f"{__name__}:Brightness", power=2.0),
            dict(scorer=f"{__name__}:length"),
            dict(scorer=f"{__name__}:length", name="second"),
        ]
    )
    assert [scorer.name for scorer in made] == ["brightness", "length", "second"]
    image = np.full((2, 2, 3), 3, np.uint8)
    found = score_all(made[0], ["", ""], [image, image])
    assert found.values_N.tolist() == [9, 9] and found.values_N.dtype == np.float32


def test_numbers_that_are_none_are_reported():
    (scorer,) = registry.make([dict(scorer=f"{__name__}:length")])
    found = score_all(scorer, ["a", "nan", "abc", "inf"], [None] * 4)
    assert found.reasons == {1: "length: the score is nan", 3: "length: the score is inf"}
    assert np.array_equal(found.values_N, [1, np.nan, 3, np.nan], equal_nan=True)


def test_a_scorer_that_raises_is_reported_for_its_pair():
    (scorer,) = registry.make([dict(scorer=f"{__name__}:failing")])
    prompts = ["a"] * 9 + ["broken"] + ["a"] * 3
    found = score_all(scorer, prompts, [None] * len(prompts))
    assert found.reasons == {9: "failing: no scorer there"}
    assert np.isfinite(np.delete(found.values_N, 9)).all()


def test_failures_of_the_device_are_not_the_images():
    def score(prompts, images):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        score_all(types.SimpleNamespace(name="s", score=score), ["a"], [None])


def test_weights_that_are_gone_are_not_the_images_fault():
    with pytest.raises(ConfigError, match="clip: gone: no such file"):
        score_all(ClipSimilarity(clip="gone"), PROMPTS, images())


def test_answers_of_another_shape_are_the_scorers_fault():
    for answer in ([1.0], np.ones((2, 1)), ["a", "b"], None):
        scorer = types.SimpleNamespace(name="odd", score=lambda *_, answer=answer: answer)
        with pytest.raises(ValueError, match="odd must give 2 numbers for 2 images, found"):
            score_all(scorer, ["a", "b"], [None, None])
    with pytest.raises(ValueError, match="odd: 1 captions and 2 images"):
        score_all(scorer, ["a"], [None, None])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("clip", "scorers must be a list of entries"),
        ([dict(clip="a")], r"scorers\[0\] must be a section with the key scorer"),
        ([dict(scorer="pikscore")], "no scorer 'pikscore' .did you mean pickscore"),
        ([dict(scorer="json:nothing")], "'json:nothing' cannot be imported"),
        ([dict(scorer="json:__name__")], "neither a class nor a function"),
        ([dict(scorer="json:JSONDecoder")], "has no name and no score"),
        ([dict(scorer="json:dumps", indent=2)], r"\[0\].indent: json:dumps is a function without"),
        ([dict(scorer="clip", clip="a", bath_size=2)], "did you mean .*batch_size"),
        ([dict(scorer="clip", clip="a", batch_size=0)], "batch_size must be at least 1"),
        ([dict(scorer="clip", clip="a", dtype="int8")], "dtype must be one of float32"),
        ([dict(scorer="clip", clip="gone")], r"scorers\[0\].clip: gone: no such file"),
        ([dict(scorer="clip", clip="a"), dict(scorer="clip", clip="b")], "two entries of the name"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_used_are_named(entries, message):
    with pytest.raises(ConfigError, match=message):
        registry.make(entries)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    clip_files.GoldenClip("hf_gelu").save(tmp_path)
    with pytest.raises(ConfigError, match=r"\[0\].tokenizer: .* has \d+ ids, but .* of 40"):
        registry.make([dict(scorer="clip", clip=str(tmp_path), tokenizer=str(folder))])
    with pytest.raises(ConfigError, match=r"\[0\].tokenizer: .* has no text tokenizer"):
        registry.make([dict(scorer="clip", clip=str(tmp_path))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.2.bias": None}, "layers.2.bias is missing"),
        ({"layer": np.ones(2, np.float32)}, "layer is unexpected"),
        ({"layers.0.weight": np.ones((6, 25), np.float32)}, r"\[6, 25\], expected \[any .*, 24\]"),
        ({"layers.2.weight": np.ones((2, 6), np.float32)}, r"\[2, 6\], expected \[1, 6\]"),
        ({"layers.0.bias": np.ones(5, np.float32)}, r"\[5\], expected \[6\]"),
        ({"layers.0.bias": np.full(6, np.inf, np.float32)}, "layers.0 holds numbers"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(change, message, folder, tmp_path):
    entry = dict(scorer="aesthetics", clip=str(folder), head=str(head_file(tmp_path, change)))
    with pytest.raises(ConfigError, match=f"head: .*head.safetensors is not an aes.*{message}"):
        registry.make([entry])


def test_mps_without_its_attention_is_refused(tmp_path):
    folder = clip_files.save_with_tokenizer(tmp_path / "mps", "hf_gelu")
    with pytest.raises(ConfigError, match="cannot be used as MPS: .* is unexpected"):
        registry.make([dict(scorer="mps", clip=str(folder))])
    path = mps_file(folder, EMBEDDING + 8)
    with pytest.raises(ConfigError, match="layers read 32 channels, not 24"):
        registry.make([dict(scorer="mps", clip=str(path))])
    tensors = safetensors.numpy.load_file(mps_file(folder, EMBEDDING))
    del tensors["cross_model.layers.1.1.fn.attn_out.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ConfigError, match="layers.1.1.fn.attn_out.weight is missing"):
        registry.make([dict(scorer="mps", clip=str(path))])
