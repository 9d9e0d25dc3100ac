"""Vision tokenizers: python -m emu3_jax.report.tokenizer_report RUN [RUN ...] --output=FILE.html

Writes one page about run directories of the task vision_tokenizer: their health, their quality, and
how they compare. Reads config.json, metrics.jsonl and, if present, goodput.jsonl, starts.jsonl,
images/ and evaluation/ (the output of `python -m emu3_jax.evaluate --output=RUN/evaluation`). A run
may still be in progress. The page is one file that loads no other file.

Example:
  python -m emu3_jax.report.tokenizer_report runs/no_gan runs/full --output=runs/tokenizers.html
"""

import html
import pathlib
from collections.abc import Sequence

from emu3_jax.figures import chart, page
from emu3_jax.files import write_atomically
from emu3_jax.report import tokenizer_verdicts
from emu3_jax.report.runs import command, commands_section, differences, points
from emu3_jax.report.tokenizer_run import TokenizerRun, read
from emu3_jax.report.tokenizer_verdicts import BAD, GOOD, UNKNOWN

# Heading, metric of the evaluator "reconstruction", digits, 1 if higher is better or -1 if lower.
FIGURES = (
    ("PSNR, stills", "psnr_images", 2, 1),
    ("SSIM, stills", "ssim_images", 3, 1),
    ("perceptual, stills", "perceptual_images", 4, -1),
    ("PSNR, clips", "psnr_clips", 2, 1),
    ("SSIM, clips", "ssim_clips", 3, 1),
    ("perceptual, clips", "perceptual_clips", 4, -1),
    ("codes used, %", "codebook_used_corpus", 1, 1),
    ("perplexity", "codebook_perplexity_corpus", 0, 1),
)
_VALIDATION = "validation/reconstruction/"
_MARKS = {GOOD: ("yes", "✓"), BAD: ("no", "✗"), UNKNOWN: ("unknown", "?")}


def build(paths: Sequence[pathlib.Path], output: pathlib.Path) -> None:
    """Reads the runs and writes the page atomically.

    Raises:
      ValueError: a directory is not a run of a vision tokenizer.
    """
    tokenizers = [read(path) for path in paths]
    names = [t.run.name for t in tokenizers]
    sections = (
        ("health", "Health", _health(tokenizers)),
        ("runs", "Runs", _runs(tokenizers)),
        ("curves", "Curves", _curves(tokenizers)),
        ("images", "Images", _images(tokenizers)),
        ("commands", "Commands", commands_section([t.run for t in tokenizers])),
    )
    title = "Vision tokenizer" + ("s" if len(names) > 1 else "")
    links = [(anchor, name) for anchor, name, _ in sections]
    head = page.head(title, _summary(tokenizers), links)
    body = f"{head}<main>{''.join(text for _, _, text in sections)}</main>"
    write_atomically(output, page.page(f"{title}: {', '.join(names)}", body).encode())


def _summary(tokenizers: Sequence[TokenizerRun]) -> str:
    sentences = []
    for tokenizer in tokenizers:
        found = tokenizer.verdicts()
        bad = [verdict.subject for verdict in found if verdict.mark == BAD]
        unknown = sum(verdict.mark == UNKNOWN for verdict in found)
        words = f"look at {'; '.join(bad)}" if bad else "healthy, as far as its log tells"
        note = f" ({unknown} open)." if unknown else "."
        sentences.append(f"{tokenizer.run.name}: {words}{note}")
    return " ".join(sentences)


def _health(tokenizers: Sequence[TokenizerRun]) -> str:
    limits = tokenizer_verdicts
    lead = (
        f"Wanted: at least {limits.USED_PERCENT:g} % of the codes in use; a PSNR that no longer"
        f" rises by {limits.RISING_DB:g} dB in the last quarter of the steps; a discriminator that"
        f" is right more often than by chance (50 %) and less often than"
        f" {100 * limits.WON_ACCURACY:g} %; no more than {100 * limits.DEAD_OF_KIND:g} % of the"
        f" codes dead for stills or for clips alone; a gradient norm under"
        f" {limits.SPIKE_FACTOR:g} medians; no step that is not finite, and no spike;"
        f" no sag of more than {limits.BOUNDARY_DB:g} dB where training clips ended. A verdict that"
        f" looks back does so over the last {100 * limits.LAST_SHARE:g} % of the steps done."
    )
    cards = []
    for tokenizer in tokenizers:
        lines = "".join(_verdict(verdict) for verdict in tokenizer.verdicts())
        name = html.escape(tokenizer.run.name)
        cards.append(f'<div class="card verdicts"><h3>{name}</h3><ul>{lines}</ul></div>')
    return page.section(
        "health", "Is it healthy?", lead, f'<div class="charts">{"".join(cards)}</div>'
    )


def _verdict(verdict: tokenizer_verdicts.Verdict) -> str:
    kind, sign = _MARKS[verdict.mark]
    return (
        f'<li><span class="mark {kind}">{sign}</span><span><b>{html.escape(verdict.subject)}</b> '
        f"{html.escape(verdict.text)}</span></li>"
    )


def _runs(tokenizers: Sequence[TokenizerRun]) -> str:
    lead = (
        "The setup of each run and its figures at the last validation. Perceptual distances are"
        " smaller for images that look alike; perplexity is the number of evenly used codes with"
        " the same entropy. – : not measured."
    )
    setups = [tokenizer.trained_with() for tokenizer in tokenizers]
    rows = [
        [html.escape(text) for text in (t.run.name, *setup.values())]
        for t, setup in zip(tokenizers, setups, strict=True)
    ]
    setup = f'<div class="wrapped">{page.table(["run", *setups[0]], rows)}</div>'
    parts = [setup, "<h3>Figures</h3>", f'<div class="wrapped">{_figures(tokenizers)}</div>']
    if any(t.figure(metric)[1] for t in tokenizers for _, metric, _, _ in FIGURES):
        parts.append('<p class="soft">* from the offline evaluation, which may use other data.</p>')
    if len(tokenizers) > 1:
        changed = differences([t.run for t in tokenizers])
        rows = [
            [f"<code>{html.escape(key)}</code>", *(html.escape(_setting(v)) for v in values)]
            for key, values in changed.items()
        ]
        names = [t.run.name for t in tokenizers]
        parts.append("<h3>Settings that differ</h3>")
        parts.append(page.table(["key", *names], rows) if rows else "<p>None.</p>")
    return page.section("runs", "The runs", lead, *parts)


def _figures(tokenizers: Sequence[TokenizerRun]) -> str:
    """Returns a table with one run per row; the best of several validations in bold."""
    known = [f for f in FIGURES if any(t.figure(f[1])[0] is not None for t in tokenizers)]
    best = {}
    for _, metric, digits, sign in known:
        found = [value for value, offline in (t.figure(metric) for t in tokenizers) if not offline]
        found = [sign * round(value, digits) for value in found if value is not None]
        best[metric] = sign * max(found) if len(found) > 1 else None
    rows = []
    for tokenizer in tokenizers:
        cells = [html.escape(tokenizer.run.name), f"{tokenizer.steps:,}"]
        for _, metric, digits, _ in known:
            value, offline = tokenizer.figure(metric)
            cell = _number(value, digits)
            if not offline and value is not None and round(value, digits) == best[metric]:
                cell = f"<b>{cell}</b>"
            cells.append(cell + ("*" if offline else ""))
        cells.append(_number(tokenizer.run.median("frames_per_second"), 1))
        rows.append([*cells, _number(tokenizer.hours, 2)])
    headings = [heading for heading, *_ in known]
    return page.table(["run", "steps", *headings, "frames/s", "hours"], rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _setting(value) -> str:
    return "–" if value is None else str(value)


def _curves(tokenizers: Sequence[TokenizerRun]) -> str:
    lead = (
        "Dots: validation. Lines without dots: training batches, pale as logged, full as a moving"
        " mean. The PSNR of training batches is of the weights without averaging."
    )
    legend = page.legend([(t.run.name, i) for i, t in enumerate(tokenizers)])
    parts, missing = [legend], []
    for heading, panels in _panels(tokenizers):
        cards = []
        for title, unit, solid, dashed in panels:
            lines = [x for i, t in enumerate(tokenizers) for x in _lines(t, i, solid, dashed)]
            if any(line.finite for line in lines):
                svg = chart.line_chart(lines, "step", unit)
                cards.append(f'<div class="card"><h3>{html.escape(title)}</h3>{svg}</div>')
            else:
                missing.append(title)
        if cards:
            parts.append(f'<h3>{heading}</h3><div class="charts">{"".join(cards)}</div>')
    if missing:
        parts.append(f'<p class="soft">Not logged: {html.escape("; ".join(missing))}.</p>')
    return page.section("curves", "Curves", lead, *parts)


def _panels(tokenizers: Sequence[TokenizerRun]):
    """Returns (heading, [(title, unit, key of a full line, key of a dashed one or "")])."""
    groups = []
    for tokenizer in tokenizers:
        if tokenizer.loss.adversarial.weight:
            groups += [g.name for g in tokenizer.data.active if g.name not in groups]
    kinds = (("stills", "images"), ("clips", "clips"))
    discriminator = [
        (f"Discriminator right on real {g}, dashed: fake", "share",
         f"adversarial/{g}_accuracy_real", f"adversarial/{g}_accuracy_fake")
        for g in groups
    ]  # fmt: skip
    discriminator += [
        (f"Weight of the discriminator, {g}", "weight", f"adversarial/{g}_weight", "")
        for g in groups
    ]
    quality = [(f"PSNR, {k}", "dB", f"{_VALIDATION}psnr_{v}", f"psnr/{k}") for k, v in kinds]
    quality += [
        (f"Perceptual distance, {k}", "distance", f"{_VALIDATION}perceptual_{v}", "")
        for k, v in kinds
    ]
    codebook = [
        ("Perplexity of the codes", "codes", "codebook/perplexity", ""),
        ("Dead codes", "share", "codebook/dead", ""),
        ("Dead for stills, dashed: for clips", "share",
         "codebook/dead_stills", "codebook/dead_clips"),
        ("Codes that serve both", "share", "codebook/shared", ""),
    ]  # fmt: skip
    norm = ("Norm of the tokenizer's gradient before clipping, dashed: discriminator's", "norm",
            "gradient_norm/tokenizer", "gradient_norm/discriminator")  # fmt: skip
    last = "Discriminator and gradient" if discriminator else "Gradient"
    return (("Reconstruction", quality), ("Codebook", codebook), (last, [*discriminator, norm]))


def _lines(tokenizer: TokenizerRun, color: int, first: str, second: str) -> list[chart.Series]:
    name, rows = tokenizer.run.name, tokenizer.run.rows
    window = max(1, len(rows) // 40)
    if first.startswith(_VALIDATION):
        behind = chart.smoothed(points(rows, second), window)
        return [
            chart.Series(f"{name}, training", behind, color, faint=True),
            chart.Series(name, points(rows, first), color, dots=True),
        ]
    logged = points(rows, first)
    lines = [
        chart.Series(f"{name}, logged", () if second else logged, color, faint=True),
        chart.Series(name, chart.smoothed(logged, window), color),
    ]
    other = chart.smoothed(points(rows, second), window)
    return [*lines, chart.Series(f"{name}, dashed", other, color, dashed=True)]


def _images(tokenizers: Sequence[TokenizerRun]) -> str:
    parts = []
    for tokenizer in tokenizers:
        parts.append(f"<h3>{html.escape(tokenizer.run.name)}</h3>")
        cards = "".join(
            f'<figure class="card wide">{page.png(image.path, image.text)}'
            f"<figcaption>{html.escape(image.text)}</figcaption></figure>"
            for image in tokenizer.images
        )
        empty = '<p class="empty">no images yet</p>'
        parts.append(f'<div class="charts images">{cards}</div>' if cards else empty)
    lead = "Reconstructions of held-out stills and clips, and what the codes look like."
    return page.section("images", "Images", lead, *parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command("report.tokenizer_report", __doc__, "file to write", arguments) as given:
        build(given.runs, given.output)
        print(f"written: {given.output}")


if __name__ == "__main__":
    main()
