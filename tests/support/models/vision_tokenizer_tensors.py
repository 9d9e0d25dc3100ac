"""All tensors of the released vision tokenizer, written out from the list of its weight names."""

import re

WIDTHS = (256, 512, 512, 1024)
KINDS = ("encoder", "decoder")


def baai() -> dict[str, tuple[int, ...]]:
    """Name -> shape in BAAI's layout, 495 of them."""
    tensors = {"quantize.embedding.weight": (32768, 4)}
    for name in ("quant_conv", "post_quant_conv"):
        tensors |= _with_bias(f"{name}.conv", (4, 4, 3, 1, 1))
    for side in KINDS:
        tensors |= _in_time(side) | _middle(side)
    tensors |= _encoder() | _decoder()
    return tensors


def hf() -> dict[str, tuple[int, ...]]:
    """The same in the -hf layout."""
    renamed = {}
    for name, shape in baai().items():
        if re.search(r"\.(q|k|v|proj_out)\.weight$", name):
            shape = shape[:2]
        name = re.sub(r"\.(q|k|v)\.(weight|bias)$", r".\1_proj.\2", name)
        name = name.replace(".proj_out.", ".out_proj.").replace("mid.attn_1.norm", "mid.attn_norm")
        name = re.sub(r"\.attn\.(\d)\.norm\.", r".attn_norms.\1.", name)
        name = name.replace(".down.", ".down_block.down.").replace(".up.", ".up_block.up.")
        renamed["vqmodel." + name.replace(".mid.", ".middle_block.")] = shape
    return renamed


def _with_bias(name, shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(side, name, channels):
    if side == "encoder":
        return _with_bias(name, (channels,))
    tensors = _with_bias(f"{name}.norm_layer", (channels,))
    for conv in ("conv_y", "conv_b"):
        tensors |= _with_bias(f"{name}.{conv}", (channels, 4, 1, 1))
    return tensors


def _block(side, name, before, after):
    tensors = _norm(side, f"{name}.norm1", before) | _norm(side, f"{name}.norm2", after)
    tensors |= _with_bias(f"{name}.conv1", (after, before, 3, 3))
    tensors |= _with_bias(f"{name}.conv2", (after, after, 3, 3))
    if before != after:
        tensors |= _with_bias(f"{name}.nin_shortcut", (after, before, 1, 1))
    return tensors


def _attention(side, name):
    tensors = _norm(side, f"{name}.norm", 1024)
    for conv in ("q", "k", "v", "proj_out"):
        tensors |= _with_bias(f"{name}.{conv}", (1024, 1024, 1, 1))
    return tensors


def _middle(side):
    tensors = _attention(side, f"{side}.mid.attn_1")
    for block in ("block_1", "block_2"):
        tensors |= _block(side, f"{side}.mid.{block}", 1024, 1024)
    return tensors


def _in_time(side):
    tensors = {}
    for i in range(2):
        kernel = (4, 4, 4, 3, 3) if side == "encoder" else (4, 4, 3, 3, 3)
        tensors |= _with_bias(f"{side}.time_conv.{i}.conv.conv", kernel)
        stack = f"{side}.time_res_stack.{i}"
        for k in (1, 2):
            tensors |= _with_bias(f"{stack}.conv{k}.conv", (4, 4, 3, 3, 3))
            tensors |= _with_bias(f"{stack}.norm{k}", (4,))
            tensors |= {f"{stack}.norm{k}.running_{name}": (4,) for name in ("mean", "var")}
            tensors[f"{stack}.norm{k}.num_batches_tracked"] = ()
    return tensors


def _encoder():
    tensors = _with_bias("encoder.conv_in", (256, 3, 3, 3))
    tensors |= _with_bias("encoder.norm_out", (1024,))
    tensors |= _with_bias("encoder.conv_out", (4, 1024, 3, 3))
    before = 256
    for level, width in enumerate(WIDTHS):
        for i in range(2):
            tensors |= _block("encoder", f"encoder.down.{level}.block.{i}", before, width)
            before = width
            if level == 3:
                tensors |= _attention("encoder", f"encoder.down.3.attn.{i}")
        if level < 3:
            name = f"encoder.down.{level}.downsample.conv"
            tensors |= _with_bias(name, (width, width, 3, 3))
    return tensors


def _decoder():
    tensors = _with_bias("decoder.conv_in", (1024, 4, 3, 3))
    tensors |= _norm("decoder", "decoder.norm_out", 256)
    tensors |= _with_bias("decoder.conv_out", (3, 256, 3, 3))
    before = 1024
    for level in (3, 2, 1, 0):
        width = WIDTHS[level]
        for i in range(3):
            tensors |= _block("decoder", f"decoder.up.{level}.block.{i}", before, width)
            before = width
            if level == 3:
                tensors |= _attention("decoder", f"decoder.up.3.attn.{i}")
        if level:
            tensors |= _with_bias(f"decoder.up.{level}.upsample.conv", (width, width, 3, 3))
    return tensors
