"""The JSON of `run_all` as a section of docs/reference/measurements.md.

PYTHONPATH=. python -m benchmarks.gpu.section runs/gpu.json
"""

import argparse
import json
import pathlib

from emu3_jax.figures.markdown_tables import escaped, table


def section(found: dict) -> str:
    """Returns the Markdown of a run's JSON."""
    card, parts = found["card"], found["parts"]
    done = {name: part for name, part in parts.items() if "error" not in part}
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    source = "data sheet" if card["data_sheet"] else "reached, since the card is not in our tables"
    lines = [
        f"## On a GPU: {card['name']}\n",
        f"{found['date']}, {versions}; {found['seconds']:.0f} s in all. Floors and MFU are of "
        f"{card['bandwidth'] / 1e9:,.0f} GB/s and {card['peak'] / 1e12:,.1f} TFLOP/s ({source}). "
        f"A copy reaches {card['copied'] / 1e9:,.0f} GB/s, a product of bfloat16 matrices "
        f"{card['multiplied'] / 1e12:,.1f} TFLOP/s.\n",
    ]
    if found["tiny"]:
        lines.append("**A dry run on small models: the figures mean nothing.**\n")
    drawings = [part for part in done.values() if "decoder" in part]
    if drawings:
        lines += [_DRAWING, _drawing_table(drawings)]
    for part in done.values():
        if "kernel" in part:
            lines.append(_attention(part))
    steps = [part for part in done.values() if "mfu" in part]
    if steps:
        lines += [_TRAINING, _training_table(steps)]
    failed = {name: part["error"] for name, part in parts.items() if "error" in part}
    lines += [f"- Not measured: {name}: {escaped(error)}" for name, error in failed.items()]
    lines.append("\n```bash\nbash benchmarks/gpu.sh\n```")
    return "\n".join(lines) + "\n"


_DRAWING = (
    "Emu3-8B with random weights draws an image of 720 × 720 (8,193 tokens) with guidance and "
    "top-k 2,048, batch 1. A pass is timed at some places of the image and lies on a line in "
    "between. The floor reads the weights and the live cache once, or multiplies at the peak if "
    "that is longer. Prompt and vision tokenizer are left out. How many drafts are kept is not "
    "known of random weights: the last column is how many tokens a pass of `jacobi` must commit to "
    "be as fast as `sequential` of the same weights.\n"
)
_TRAINING = (
    "The training step of `configs/emu3_1b5.py` on this card, random tokens, four documents a row; "
    "MFU counts nothing that is computed again.\n"
)


def _drawing_table(parts: list[dict]) -> str:
    plain = [p for p in parts if p["decoder"] == "sequential" and not p["stacked"]]
    one_by_one = {tuple(p["int8"]): p["ms"] for p in plain}
    head = [
        "decoder", "tokens of a pass", "int8", "layers", "ms, first to last", "ms, mean", "floor",
        "×", "an image", "its floor", "memory", "tokens to break even",
    ]  # fmt: skip
    rows = []
    for part in parts:
        known = part["seconds"] is not None
        base = one_by_one.get(tuple(part["int8"]))
        rows.append([
            part["decoder"],
            str(part["window"]),
            " and ".join(part["int8"]),
            "stack" if part["stacked"] else "list",
            ", ".join(f"{point['ms']:.2f}" for point in part["points"]),
            f"{part['ms']:.2f}",
            f"{part['floor_ms']:.2f}",
            f"{part['ms'] / part['floor_ms']:.2f}",
            f"{part['seconds']:.1f} s" if known else "",
            f"{part['floor_seconds']:.1f} s" if known else "",
            f"{part['gib']:.1f} GiB",
            "" if known or base is None else f"{part['ms'] / base:.2f}",
        ])  # fmt: skip
    return table(head, rows)


def _attention(part: dict) -> str:
    rows, length, heads, kv_heads, dim = part["sizes"]
    shares = ", ".join(f"{name} {share:.2f}" for name, share in part["shares"].items())
    times = ", ".join(f"`{name}` {ms:.2f} ms" for name, ms in part["ms"].items())
    verdict = "it is right" if part["right"] else "**it is wrong**"
    return (
        f"Attention `{part['kernel']}` in bfloat16 against `reference` in float32, {rows} × "
        f"{length:,} tokens, {heads} heads over {kv_heads}, {dim} numbers each, three documents "
        "and padding. Largest error as a part of the tolerance that "
        f"`benchmarks/gpu/attention_error.py` derives, values and gradients: {shares}; {verdict}. "
        f"Values and gradients take {times}.\n"
    )


def _training_table(parts: list[dict]) -> str:
    head = ["attention", "remat", "rows", "s a step", "tokens/s", "MFU, %", "memory"]
    rows = [
        [
            part["attention"],
            part["remat"],
            f"{part['rows']} of {part['length']:,}",
            f"{part['seconds']:.3f}",
            f"{part['tokens_per_s']:,.0f}",
            f"{100 * part['mfu']:.1f}",
            f"{part['gib']:.1f} GiB",
        ]
        for part in parts
    ]
    return table(head, rows)


def main() -> None:
    """Prints the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=pathlib.Path, help="what run_all has written")
    print(section(json.loads(parser.parse_args().json.read_text())), end="")


if __name__ == "__main__":
    main()
