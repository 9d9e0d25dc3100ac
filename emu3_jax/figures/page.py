"""Parts of a report page: style, embedded images, cards, tables."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from emu3_jax import provenance
from emu3_jax.figures import chart

STYLE = """
:root { color-scheme: light dark; --page:#fbfbfd; --card:#ffffff; --ink:#1b1d23; --soft:#616673;
  --line:#e4e6ec; --accent:#4457d6; --tint:#eef0fc; --good:#1c8f6a; --bad:#c2452d;
  --c0:#4457d6; --c1:#e0662b; --c2:#1c8f6a; --c3:#b0429b; --c4:#8a7a12; --c5:#c0392b; }
@media (prefers-color-scheme: dark) { :root { --page:#111319; --card:#191c24; --ink:#e9eaf0;
  --soft:#9aa0af; --line:#2b2f3a; --accent:#93a0ff; --tint:#20243a; --good:#4cc79b; --bad:#f0866f;
  --c0:#8c9aff; --c1:#f2935f; --c2:#4cc79b; --c3:#dd86cf; --c4:#d1bf4f; --c5:#f0786a; } }
* { box-sizing:border-box } html { scroll-behavior:smooth }
body { margin:0; background:var(--page); color:var(--ink); font:16px/1.6 system-ui,-apple-system,
  "Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; -webkit-font-smoothing:antialiased }
main, header.top, footer { max-width:1080px; margin:0 auto; padding:0 24px }
header.top { padding-top:64px; text-align:center }
h1 { font-size:clamp(2rem,4.6vw,3rem); line-height:1.12; letter-spacing:-.025em; margin:0 0 14px }
header.top > p { max-width:44rem; margin:0 auto; color:var(--soft); font-size:1.09rem }
nav { display:flex; flex-wrap:wrap; gap:8px; justify-content:center; margin:26px 0 30px }
nav a { padding:5px 14px; border-radius:99px; background:var(--tint); color:var(--accent);
  text-decoration:none; font-size:.88rem; font-weight:550 } nav a:hover { filter:brightness(.96) }
section { margin:58px 0 } h2 { font-size:1.55rem; letter-spacing:-.015em; margin:0 0 6px }
h3 { font-size:1.02rem; margin:30px 0 10px } section > p { max-width:46rem; margin:.4em 0 1em }
p.lead, .soft { color:var(--soft) } a { color:var(--accent) }
.facts { display:grid; grid-template-columns:repeat(auto-fit,minmax(132px,1fr)); gap:12px }
.fact, .card { background:var(--card); border:1px solid var(--line); border-radius:14px }
.fact { padding:14px 12px; text-align:center } .fact b { display:block; font-size:1.32rem;
  letter-spacing:-.02em; line-height:1.25 } .fact span { color:var(--soft); font-size:.82rem }
.hero { display:grid; grid-template-columns:repeat(8,1fr); gap:12px; margin:0 0 28px }
@media (max-width:720px) { .hero { grid-template-columns:repeat(4,1fr) } .charts {
  grid-template-columns:1fr !important } main, header.top, footer { padding-left:16px;
  padding-right:16px } header.top { padding-top:40px } section { margin:44px 0 } }
.hero img { width:100%; border-radius:14px; background:#fff;
  border:1px solid var(--line); display:block; aspect-ratio:1 }
.grid { display:grid; gap:14px; grid-template-columns:repeat(auto-fill,minmax(236px,1fr)) }
.grid.broad { grid-template-columns:repeat(auto-fill,minmax(310px,1fr)) }
.card { padding:12px; margin:0 } .card figcaption { font-size:.88rem; line-height:1.4;
  margin-top:6px; text-align:center } .pair { display:grid; grid-template-columns:1fr 1fr; gap:8px }
.pair img { width:100%; display:block; border-radius:9px; background:#fff; aspect-ratio:1;
  border:1px solid var(--line) } .tag { display:block; text-align:center; font-size:.72rem;
  color:var(--soft); margin-top:3px } .tag.ours { color:var(--accent); font-weight:650 }
.stream { display:flex; flex-wrap:wrap; gap:5px; padding:16px; margin:18px 0 8px }
.stream span { font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
  padding:2px 8px; border-radius:7px; color:var(--k); white-space:pre;
  background:color-mix(in srgb,var(--k) 13%,transparent) }
.written { display:grid; grid-template-columns:96px 1fr; gap:12px; align-items:center }
.written img { width:96px; border-radius:9px; background:#fff; border:1px solid var(--line);
  display:block } .written p { margin:0; font-size:.88rem; line-height:1.4 }
.written .truth { color:var(--soft); font-size:.8rem; margin-top:5px }
.mark { font-size:.72rem; font-weight:650; border-radius:99px; padding:1px 8px; margin-right:5px;
  white-space:nowrap } .yes { color:var(--good); background:color-mix(in srgb,var(--good) 14%,
  transparent) } .no { color:var(--bad); background:color-mix(in srgb,var(--bad) 14%,transparent) }
.wrapped table { min-width:900px } .wrapped th, .wrapped td { white-space:normal }
.dense { width:min(1320px,100vw - 48px); margin-left:50%; transform:translateX(-50%) }
.dense th, .dense td { padding:6px 5px; font-size:.78rem } .dense th { font-size:.68rem }
td sup { line-height:0 } td small { white-space:nowrap }
.notes { color:var(--soft); font-size:.84rem; line-height:1.5; margin-top:12px }
.notes p { margin:.3em 0; overflow-wrap:anywhere } .notes sup { margin-right:3px }
.charts.images { align-items:start }
.mark.unknown { color:var(--soft); background:var(--line) }
.verdicts ul { list-style:none; margin:0; padding:0 4px } .verdicts li { display:grid;
  grid-template-columns:30px 1fr; padding:5px 0; font-size:.9rem; line-height:1.45 }
.verdicts .mark { justify-self:start; align-self:start; margin-top:2px }
.charts { display:grid; gap:14px; grid-template-columns:repeat(auto-fill,minmax(380px,1fr)) }
.charts h3 { margin:2px 0 4px 4px } svg.chart { width:100%; height:auto; display:block }
.legend { display:flex; flex-wrap:wrap; gap:6px 18px; font-size:.85rem; color:var(--soft);
  margin:0 0 12px } .legend i { display:inline-block; width:16px; height:3px; border-radius:2px;
  margin-right:7px; vertical-align:middle }
.scroll { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:.9rem }
th, td { text-align:right; padding:8px 10px; border-bottom:1px solid var(--line);
  font-variant-numeric:tabular-nums; white-space:nowrap; vertical-align:middle }
th { color:var(--soft); font-weight:600; font-size:.8rem } td:first-child, th:first-child {
  text-align:left; white-space:normal } tr:last-child td { border-bottom:0 }
tr.group td { padding-top:18px; font-weight:650; color:var(--ink) } td svg.bar {
  vertical-align:middle; margin-left:10px } td b { font-weight:650 }
.stages { display:grid; grid-template-columns:minmax(150px,max-content) 1fr max-content;
  gap:8px 14px; font-size:.9rem; align-items:center; padding:18px 20px }
.stages .track { height:12px;
  border-radius:6px; background:var(--line) } .stages .fill { display:block; height:12px;
  border-radius:6px; background:var(--c0); min-width:3px } .stages b { text-align:right;
  font-variant-numeric:tabular-nums; font-weight:600 }
pre { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:13px 16px;
  overflow-x:auto; font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
  margin:6px 0 18px } .what { font-size:.92rem; font-weight:600; margin:14px 0 0 }
.wide img { width:100%; display:block; border-radius:9px; border:1px solid var(--line) }
.banner { background:color-mix(in srgb,var(--bad) 13%,transparent); color:var(--bad); padding:10px;
  text-align:center; font-weight:600; font-size:.92rem } .empty { color:var(--soft) }
footer { padding-top:22px; padding-bottom:56px; color:var(--soft); font-size:.85rem;
  border-top:1px solid var(--line); margin-top:70px } footer p { margin:.3em 0;
  overflow-wrap:anywhere }
"""


def page(title: str, body: str, banner: str = "", credits: Sequence[str] = ()) -> str:
    """Returns a whole HTML document that loads no other file.

    Args:
      title: of the document.
      body: HTML: a `head` and <main>.
      banner: a warning across the top.
      credits: lines at the foot, before those that say what wrote the page.
    """
    note = f'<div class="banner">{html.escape(banner)}</div>' if banner else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{note}{body}{_foot(credits)}</body></html>\n"
    )


def _foot(credits: Sequence[str]) -> str:
    made = provenance.of_this_process()
    lines = [*map(html.escape, credits), f"Written by <code>{html.escape(made.command)}</code>",
             html.escape(made.sentence())]  # fmt: skip
    return f"<footer>{''.join(f'<p>{line}</p>' for line in lines)}</footer>"


def head(title: str, summary: str, links: Sequence[tuple[str, str]], *parts: str) -> str:
    """Returns the top of a page: title, summary, links (anchor, name of a section) and `parts`."""
    nav = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in links)
    return (
        f'<header class="top"><h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p>'
        f"<nav>{nav}</nav>{''.join(parts)}</header>"
    )


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Returns a legend of (name, index of its colour)."""
    keys = "".join(
        f'<span><i style="background:{chart.color(index)}"></i>{html.escape(name)}</span>'
        for name, index in names
    )
    return f'<div class="legend">{keys}</div>'


def image(pixels: np.ndarray, text: str, seconds: float = 1.0, lossless: bool = False) -> str:
    """Returns an <img> with the image embedded.

    Args:
      pixels: uint8 [H, W, 3], or [T, H, W, 3] for an endless animation.
      text: what it shows; the alternative text.
      seconds: length of one loop of an animation.
      lossless: whether every pixel is kept, as small images need that are shown large.
    """
    buffer = io.BytesIO()
    if pixels.ndim == 4:
        frames = [Image.fromarray(frame) for frame in pixels]
        frames[0].save(
            buffer,
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 * seconds / len(frames)),
            loop=0,
            quality=88,
            lossless=lossless,
        )
    else:
        Image.fromarray(pixels).save(buffer, "WEBP", quality=92, method=6, lossless=lossless)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{html.escape(text, quote=True)}">'


def png(path: pathlib.Path, text: str) -> str:
    """Returns an <img> with the PNG file embedded unchanged; `text` is its alternative text."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text, quote=True)}">'


def tagged(pixels: np.ndarray, tag: str, text: str, ours: bool, seconds: float = 1.0) -> str:
    """Returns an image with a small tag below it."""
    kind = "tag ours" if ours else "tag"
    return (
        f'<div>{image(pixels, text, seconds)}<span class="{kind}">{html.escape(tag)}</span></div>'
    )


def token_stream(tokens: Sequence[tuple[str, int]]) -> str:
    """Returns tokens as small boxes: (text of the box, index of its colour)."""
    boxes = "".join(
        f'<span style="--k:var(--c{color})">{html.escape(text)}</span>' for text, color in tokens
    )
    return f'<div class="card stream">{boxes}</div>'


def pair_card(left: str, right: str, caption: str) -> str:
    """Returns two tagged images above their caption."""
    return (
        f'<figure class="card"><div class="pair">{left}{right}</div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def section(anchor: str, title: str, lead: str, *parts: str) -> str:
    """Returns a section with its heading; `lead` is plain text, `parts` are HTML."""
    return (
        f'<section id="{anchor}"><h2>{html.escape(title)}</h2>'
        f'<p class="lead">{html.escape(lead)}</p>{"".join(parts)}</section>'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; cells are HTML, a row of one cell is the heading of a group."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    lines = []
    for row in rows:
        if len(row) == 1:
            lines.append(f'<tr class="group"><td colspan="{len(columns)}">{row[0]}</td></tr>')
        else:
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def commands(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns pairs of (what a command does, the command)."""
    return "".join(
        f'<p class="what">{html.escape(what)}</p><pre>{html.escape(command)}</pre>'
        for what, command in pairs
    )


def stages(pairs: Sequence[tuple[str, float]], words: Sequence[str]) -> str:
    """Returns bars of (name, seconds), with the durations in `words`."""
    longest = max((seconds for _, seconds in pairs), default=1.0) or 1.0
    lines = []
    for (name, seconds), word in zip(pairs, words, strict=True):
        lines.append(
            f'<span>{html.escape(name)}</span><span class="track"><span class="fill"'
            f' style="width:{100 * seconds / longest:.1f}%"></span></span>'
            f"<b>{html.escape(word)}</b>"
        )
    return f'<div class="card stages">{"".join(lines)}</div>'
