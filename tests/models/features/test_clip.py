"""CLIP against transformers and OpenCLIP on small random weights, from files to embeddings."""

import functools

import clip_files
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from clip_files import GoldenClip

from emu3_jax.interop.vision import clip_weights
from emu3_jax.models.features import clip

# float32 through some twenty matmuls against float64: found 2.4e-6 of the largest number.
RELATIVE = 1e-5


def distance(found, expected):
    return np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()


def embeddings(config, weights, golden, dtype=np.float32):
    image = jax.jit(functools.partial(clip.image_embeddings, config))
    text = jax.jit(functools.partial(clip.text_embeddings, config, dtype=dtype))
    return (
        image(weights, golden.pixels.astype(dtype)),
        text(weights, golden.arrays["ids"].astype(np.int32)),
    )


@pytest.mark.parametrize("name", clip_files.NAMES)
def test_embeddings_are_those_of_the_reference(name, tmp_path):
    golden = GoldenClip(name)
    config, weights = clip_weights.load(golden.save(tmp_path))
    image, text = embeddings(config, weights, golden)
    assert distance(image, golden.arrays["image"]) < RELATIVE
    assert distance(text, golden.arrays["text"]) < RELATIVE


def test_every_token_can_be_projected(tmp_path):
    golden = GoldenClip("hf_quick_gelu")
    config, weights = clip_weights.load(golden.save(tmp_path))
    image = clip.projected(weights, "image", clip.image_hidden(config, weights, golden.pixels))
    text = clip.projected(weights, "text", clip.text_hidden(config, weights, golden.arrays["ids"]))
    assert distance(image, golden.arrays["image_tokens"]) < RELATIVE
    assert distance(text, golden.arrays["text_tokens"]) < RELATIVE


def test_half_precision_is_near(tmp_path):
    golden = GoldenClip("hf_quick_gelu")
    config, weights = clip_weights.load(golden.save(tmp_path))
    for found, key in zip(
        embeddings(config, weights, golden, jax.numpy.bfloat16), ("image", "text"), strict=True
    ):
        assert found.dtype == np.float32
        assert 1e-4 < distance(found, golden.arrays[key]) < 0.05


def test_sizes_come_from_the_weights_and_the_config(tmp_path):
    config, _ = clip_weights.load(GoldenClip("hf_gelu").save(tmp_path))
    assert (config.side, config.patch, config.context, config.vocabulary) == (28, 7, 12, 40)
    assert config.embedding == 24
    assert config.image == clip.Tower(48, 2, 4, 80, "gelu")
    assert config.text == clip.Tower(32, 2, 2, 48, "gelu")
    assert config.end == 17  # in older configs 2, which stands for the largest id
    assert clip_weights.load(GoldenClip("hf_quick_gelu").save(tmp_path / "b"))[0].end is None


def test_old_configs_have_the_sections_of_the_second_name(tmp_path):
    golden = GoldenClip("hf_gelu")
    config = golden.files["config.json"]
    for tower in ("text", "vision"):
        stated = config[f"{tower}_config"]
        config[f"{tower}_config_dict"] = stated | {"hidden_act": "quick_gelu"}
    assert clip_weights.load(golden.save(tmp_path))[0].text.activation == "quick_gelu"
    del config["text_config"]["num_attention_heads"], config["text_config_dict"]
    assert clip_weights.load(golden.save(tmp_path))[0].text.heads == 8  # transformers' default


def test_without_a_config_the_activation_must_be_given(tmp_path):
    golden = GoldenClip("open_clip")
    golden.files = {}
    with pytest.raises(ValueError, match='nothing states its activation.*give "quick_gelu"'):
        clip_weights.load(golden.save(tmp_path))
    config, _ = clip_weights.load(tmp_path / "model.safetensors", "gelu")
    assert config.image.activation == config.text.activation == "gelu"
    openai, _ = clip_weights.load(GoldenClip("openai").save(tmp_path / "openai"))
    assert openai.image.activation == "quick_gelu" and openai.image.heads == 2
    with pytest.raises(ValueError, match="its activation is quick_gelu, not gelu"):
        clip_weights.load(tmp_path / "openai", "gelu")
    with pytest.raises(ValueError, match="one of quick_gelu, gelu, found 'relu'"):
        clip_weights.load(tmp_path, "relu")


def test_heads_of_the_released_models_without_a_config():
    for width, text_width, heads in ((768, 512, 12), (1024, 768, 16), (1280, 1024, 16)):
        found = clip_weights.clip_config.unstated({"image": width, "text": text_width})
        assert found.heads == {"image": heads, "text": text_width // 64}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("openai", {"visual.ln_post.bias": None}, "visual.ln_post.bias is missing"),
        ("openai", {"visual.odd": np.ones(2)}, "visual.odd is unexpected"),
        (
            "openai",
            {"transformer.resblocks.1.attn.in_proj_weight": np.ones((64, 64))},
            r"in_proj_weight has shape \[64, 64\], expected \[192, 64\]",
        ),
        (
            "hf_gelu",
            {"text_model.encoder.layers.0.self_attn.k_proj.bias": np.ones(31)},
            r"k_proj.bias has shape \[31\], expected \[32\]",
        ),
        ("hf_gelu", {"text_projection.weight": np.ones((23, 32))}, r"expected \[24, 32\]"),
        ("hf_gelu", {"logit_scale": np.ones(2)}, r"logit_scale has shape \[2\], expected \[\]"),
        ("hf_gelu", {"logit_scale": np.array(np.nan)}, "logit_scale holds numbers that are not"),
        ("hf_gelu", {"vision_model.embeddings.position_embedding.weight": None}, "is missing"),
        (
            "hf_gelu",
            {"vision_model.embeddings.position_embedding.weight": np.ones((18, 48))},
            "18 rows, expected a square number and one",
        ),
        ("open_clip", {"text.transformer.resblocks.0.mlp.c_fc.weight": None}, "c_fc.weight is mi"),
        ("open_clip", {"visual.conv1.weight": None}, "neither visual.conv1.weight"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(name, change, message, tmp_path):
    golden = GoldenClip(name)
    for key, value in change.items():
        golden.tensors.pop(key, None)
        if value is not None:
            golden.tensors[key] = value.astype(np.float32)
    with pytest.raises(ValueError, match=message) as caught:
        clip_weights.load(golden.save(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "section", "change", "message"),
    [
        ("hf_gelu", ("vision_config",), {"num_attention_heads": 5}, "5 heads do not divide .* 48"),
        ("hf_gelu", ("text_config",), {"eos_token_id": 49407}, "id 49407, which is not one of 40"),
        ("hf_gelu", ("text_config",), {"hidden_act": "relu"}, "found 'relu'"),
        ("open_clip", ("model_cfg", "text_cfg"), {"pool_type": "last"}, 'the text is \'last\''),
        ("open_clip", ("model_cfg", "vision_cfg"), {"head_width": 0}, "not a config of a CLIP"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_are_refused(name, section, change, message, tmp_path):
    golden = GoldenClip(name)
    (content,) = golden.files.values()
    for key in section:
        content = content[key]
    content |= change
    with pytest.raises(ValueError, match=message):
        clip_weights.load(golden.save(tmp_path))


def test_a_file_or_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.safetensors: no such file; expected the weights"):
        clip_weights.load(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        clip_weights.load(tmp_path)


def test_open_clips_folder_is_read(tmp_path):
    golden = GoldenClip("open_clip")
    (golden.save(tmp_path) / "model.safetensors").rename(tmp_path / clip_weights.OPEN_CLIP_WEIGHTS)
    assert clip_weights.load(tmp_path)[0].image.heads == 4
    for dtype in (np.float16, ml_dtypes.bfloat16):  # the weights are exact in both
        half = {key: array.astype(dtype) for key, array in golden.tensors.items()}
        safetensors.numpy.save_file(half, tmp_path / clip_weights.OPEN_CLIP_WEIGHTS)
        image, _ = embeddings(*clip_weights.load(tmp_path), golden)
        assert distance(image, golden.arrays["image"]) < RELATIVE


def test_images_and_captions_of_another_size_are_refused(tmp_path):
    config, weights = clip_weights.load(GoldenClip("hf_gelu").save(tmp_path))
    with pytest.raises(ValueError, match=r"images \[28, 28, 3\], found \[28, 27, 3\]"):
        clip.image_embeddings(config, weights, np.zeros((1, 28, 27, 3), np.float32))
    with pytest.raises(ValueError, match="reads 12 tokens, found 13"):
        clip.text_embeddings(config, weights, np.zeros((1, 13), np.int32))
