"""Writes the golden figures of CLIP beside this file: models, tokenizer, images.

    python make.py          # needs torch, torchvision, transformers 5, open_clip_torch, hpsv2's
                            # transform (PyPI hpsv2 1.2.0, unpacked: HPSV2=its folder)

Written with torch 2.14.1, torchvision 0.29.1, transformers 5.24.0, open_clip_torch 3.3.0,
tokenizers 0.23.3 and Pillow 13.0.0, on a CPU. Weights and pixels are int8 in units of UNIT, so that
they are small and exact in every float type; outputs are computed in float64.
"""

import gzip
import importlib.util
import json
import os
import pathlib
import sys

import numpy as np
import open_clip
import tokenizers
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torchvision import transforms

HERE = pathlib.Path(__file__).parent
VOCABULARY, CONTEXT, EMBEDDING = 40, 12, 24
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
SIDE = 28  # of the models
IMAGE_SIDE = 16  # of the preprocessed images; 224 in the released models
UNIT = 1 / 16
MERGES = 200  # about; 48,894 in CLIP
SENTENCES = [
    "a photo of a cat and a dog in the garden of the house",
    "it's the dog's ball, isn't it? they'll see the cats and the dogs of the town",
    "the painting of the sea at night, in blue and grey; don't touch the painting",
    "the cat sat on the mat, the dog ran in the garden, the photo is of the two of them",
    "crème brûlée, été, 2024 and 2025",
]


def ids(generator, end):
    """int64 [4, CONTEXT] of texts of several lengths; `end` closes each, zeros follow."""
    rows = np.zeros((4, CONTEXT), np.int64)
    for row, length in zip(rows, (3, 7, CONTEXT, 1), strict=True):
        row[:length] = generator.integers(3, VOCABULARY - 2, length)
        row[length - 1] = end
    rows[0, 3:] = end  # transformers pads with it
    return rows


def quantised(model, generator):
    """Draws every weight; returns name → int8, and the model in float64 with these weights."""
    stored = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name == "attn_mask":
            continue
        spread = 3.5 if tensor.ndim > 1 else 6
        values = np.clip(np.rint(generator.standard_normal(tensor.shape) * spread), -127, 127)
        if name == "logit_scale":
            values = np.full(tensor.shape, 40.0)
        if tensor.ndim == 1 and name.endswith("weight"):  # of a norm
            values = values + 16
        stored[name] = values.astype(np.int8)
    weights = {
        name: torch.tensor(array.astype(np.float64) * UNIT) for name, array in stored.items()
    }
    model = model.double().eval()
    model.load_state_dict(weights, strict=False)
    return stored, model


def drawn_pixels(generator):
    return np.rint(generator.standard_normal((3, 3, SIDE, SIDE)) / UNIT).astype(np.int8)


def write(name, stored, config, inputs, outputs, config_name):
    """One int8 vector of all weights, and json with their shapes in order and the config files."""
    about = {"shapes": {key: array.shape for key, array in stored.items()}, "unit": UNIT}
    about["files"] = {config_name: config} if config else {}
    arrays = {key: np.asarray(value, np.float32) for key, value in outputs.items()}
    arrays |= inputs | {"weights": np.concatenate([a.ravel() for a in stored.values()])}
    np.savez_compressed(HERE / f"{name}.npz", about=np.array(json.dumps(about)), **arrays)


def transformers_model(name, activation, eos, seed):
    """The -hf names. eos 2 is the mark of old configs, which pool at the largest id."""
    config = transformers.CLIPConfig(
        text_config=dict(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=CONTEXT, hidden_act=activation,
            eos_token_id=eos, bos_token_id=0, projection_dim=EMBEDDING,
        ),
        vision_config=dict(
            hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            image_size=SIDE, patch_size=7, hidden_act=activation, projection_dim=EMBEDDING,
        ),
        projection_dim=EMBEDDING,
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    model = transformers.CLIPModel(config)
    model.set_attn_implementation("eager")
    stored, model = quantised(model, generator)
    pixels = drawn_pixels(generator)
    tokens = ids(generator, VOCABULARY - 1 if eos == 2 else eos)
    with torch.no_grad():
        text = model.text_model(input_ids=torch.tensor(tokens))
        image = model.vision_model(pixel_values=torch.tensor(pixels * UNIT))
        outputs = {
            "text": model.text_projection(text.pooler_output),
            "image": model.visual_projection(image.pooler_output),
            # MPS projects every token; pictures without the last norm.
            "text_tokens": model.text_projection(text.last_hidden_state),
            "image_tokens": model.visual_projection(image.last_hidden_state),
        }
    if activation == "gelu":
        del outputs["text_tokens"], outputs["image_tokens"]
    inputs = {"pixels": pixels, "ids": tokens}
    write(name, stored, config.to_diff_dict(), inputs, outputs, "config.json")


def open_clip_model(name, cls, quick_gelu, seed, vision, text, files):
    generator = np.random.default_rng(seed)
    vision = dict(image_size=SIDE, patch_size=7) | vision
    text = dict(context_length=CONTEXT, vocab_size=VOCABULARY) | text
    model = cls(EMBEDDING, vision, text, quick_gelu=quick_gelu)
    stored, model = quantised(model, generator)
    pixels = drawn_pixels(generator)
    tokens = ids(generator, VOCABULARY - 1)
    with torch.no_grad():
        outputs = {
            "text": model.encode_text(torch.tensor(tokens)),
            "image": model.encode_image(torch.tensor(pixels * UNIT)),
        }
    config = None
    if files:
        about = dict(embed_dim=EMBEDDING, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
        config = {"model_cfg": about, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    inputs = {"pixels": pixels, "ids": tokens}
    write(name, stored, config, inputs, outputs, "open_clip_config.json")


def merges():
    """Pairs of byte-pair encoding, learnt from a few sentences: [[left, right], ...]."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    splits = [
        tokenizers.pre_tokenizers.Whitespace(),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=MERGES, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(SENTENCES, trainer)
    return json.loads(learner.to_str())["model"]["merges"]


def tokenizer():
    """A small vocabulary in three files, and ids of texts by both projects."""
    pairs = list(dict.fromkeys(map(tuple, merges())))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (HERE / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    small = HERE / "small.txt.gz"
    small.write_bytes(gzip.compress("\n".join(lines).encode()))
    reference = SimpleTokenizer(str(small), context_length=CONTEXT)
    small.unlink()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {marks.get(token, token): i for token, i in reference.encoder.items()}
    (HERE / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    fast = transformers.CLIPTokenizer(vocab=vocabulary, merges=pairs)
    fast.backend_tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    texts = [
        "a photo of a cat", "  A   PHOTO\n of\ta Cat!  ", "", "it's 2024's dog, isn't it?",
        "the cat and the dog and the cat and the dog and the cat", "Crème brûlée — 東京 🐈‍⬛",
        "e\u0301t\u00e9", "ÄÖÜ ß İ", "don't; they'll... #1 @home $5.00", "a\u00a0b\u2003c\u200bd",
        "a<|endoftext|>b", "tom &amp; jerry &lt;3",
    ]  # fmt: skip
    rows = []
    for text in texts:
        found = fast(text, truncation=True, max_length=CONTEXT).input_ids
        clean = [int(i) for i in reference([text])[0]]
        rows.append({"text": text, "transformers": found, "open_clip": clean})
    golden = {"context": CONTEXT, "rows": rows}
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (HERE / "tokenizer_ids.json").write_text(text, encoding="utf-8")


def hps_transform():
    folder = pathlib.Path(os.environ["HPSV2"]) / "hpsv2/src/open_clip"
    package = importlib.util.spec_from_loader("hps", loader=None, is_package=True)
    module = importlib.util.module_from_spec(package)
    module.__path__ = [str(folder)]
    sys.modules["hps"] = module
    return importlib.import_module("hps.transform").image_transform(
        IMAGE_SIDE, is_train=False, resize_longest_max=True
    )


def as_bytes(pixels):
    values = (pixels * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))) * 255
    assert np.abs(values - np.rint(values)).max() < 1e-3
    return np.rint(values).astype(np.uint8)


def images():
    """uint8 images and what each project feeds to its network: [3, IMAGE_SIDE, IMAGE_SIDE].

    The first two rules round to bytes before they normalise; `0/normalised` is one result of it.
    """
    generator = np.random.default_rng(5)
    shapes = [(24, 35), (29, 20), (44, 18), (16, 16), (9, 11)]
    arrays = {}
    torchvision = transforms.Compose([
        transforms.Resize(IMAGE_SIDE, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(IMAGE_SIDE),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    size = {
        "size": {"shortest_edge": IMAGE_SIDE},
        "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    }
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**size)
    hps = hps_transform()
    for i, (height, width) in enumerate(shapes):
        coarse = generator.integers(0, 256, (5, 4, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.integers(-40, 41, (height, width, 3))
        pixels = np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        arrays[f"{i}/pixels"] = pixels
        found = processor(images=image, return_tensors="np")["pixel_values"][0]
        arrays[f"{i}/transformers"] = as_bytes(found)
        arrays[f"{i}/torchvision"] = as_bytes(torchvision(image).numpy())
        if i == 0:
            arrays["0/normalised"] = found
        if i < 2 or i == 4:
            arrays[f"{i}/hps"] = hps(image).numpy()
    np.savez_compressed(HERE / "images.npz", **arrays)


if __name__ == "__main__":
    transformers_model("hf_quick_gelu", "quick_gelu", eos=2, seed=1)
    transformers_model("hf_gelu", "gelu", eos=17, seed=2)
    open_clip_model(
        "openai", CLIP, True, 3, dict(width=128, layers=1, mlp_ratio=0.25),
        dict(width=64, heads=1, layers=2, mlp_ratio=0.5), files=False,
    )  # fmt: skip
    open_clip_model(
        "open_clip", CustomTextCLIP, False, 4, dict(width=48, head_width=12, layers=2, mlp_ratio=2),
        dict(width=32, heads=4, layers=2, mlp_ratio=2), files=True,
    )  # fmt: skip
    tokenizer()
    images()
