"""What the tabs show, as HTML: images, clips, grids of codes, heat maps, token streams.

Everything is part of the page: no file is written, and none is fetched.
"""

import html
import math
from collections.abc import Sequence

import numpy as np

from emu3_jax.demo.tabs.filming import Film
from emu3_jax.demo.tabs.imaging import Picture
from emu3_jax.demo.tabs.inspecting import Look
from emu3_jax.figures import page
from emu3_jax.report.dataset_page import CLASSES

# Colours are those of the reports, in both modes.
STYLE = """
.gradio-container { --c0:#4457d6; --c1:#e0662b; --c2:#1c8f6a; --c4:#8a7a12; --soft:#616673;
  --line:#e4e6ec; --card:#fff; --tint:#f1f2f8; --bad:#b83a24; }
.dark .gradio-container, .dark.gradio-container { --c0:#8c9aff; --c1:#f2935f; --c2:#4cc79b;
  --c4:#d1bf4f; --soft:#a3a9b8; --line:#343947; --card:#1d212b; --tint:#262b37; --bad:#f0866f; }
.gradio-container .html-container { padding:0 !important }
.gradio-container button[aria-label="Share"], .gradio-container button[title="Share"] {
  display:none }
.gradio-container .says { color:var(--soft); margin:2px 0; font-variant-numeric:tabular-nums }
.gradio-container .says.wrong { color:var(--bad); font-weight:550 }
.gradio-container h1 { margin:6px 0 2px; letter-spacing:-.02em }
.emu figure { margin:0; min-width:0 }
.emu figcaption { color:var(--soft); font-size:.84rem; text-align:center; margin-top:6px;
  font-variant-numeric:tabular-nums }
.emu.gallery { display:grid; gap:14px;
  grid-template-columns:repeat(auto-fill,minmax(max(130px,22%),1fr)) }
.emu.gallery.few { grid-template-columns:repeat(auto-fit,minmax(150px,300px)) }
.emu.gallery.one { grid-template-columns:minmax(0,320px) }
.emu .frame { background:repeating-conic-gradient(var(--tint) 0 25%,transparent 0 50%) 0/25% 25%;
  border:1px solid var(--line); border-radius:14px; overflow:hidden }
.emu .drawn { overflow:hidden }
.emu .frame img { width:100%; height:100%; display:block; margin:0; border-radius:0 }
.emu section { margin:0 0 26px } .emu h3 { font-size:1rem; margin:0 0 10px }
.emu .figures { display:grid; gap:16px; grid-template-columns:repeat(auto-fit,minmax(210px,1fr)) }
.emu .figures > figure > img, .emu .grained img { width:100%; display:block; margin:0;
  border-radius:12px; border:1px solid var(--line); image-rendering:pixelated }
.emu .cells { container-type:inline-size; border-radius:12px; overflow:hidden;
  border:1px solid var(--line) }
.emu .cells > div { display:grid }
.emu .cells span { aspect-ratio:1; display:grid; place-items:center; overflow:hidden;
  font:500 calc(26cqw / var(--columns))/1 ui-monospace,Menlo,Consolas,monospace }
.emu .legend { display:flex; flex-wrap:wrap; gap:6px 18px; font-size:.85rem; color:var(--soft);
  margin:0 0 10px } .emu .legend i { display:inline-block; width:16px; height:4px;
  border-radius:2px; margin-right:7px; vertical-align:middle }
.emu .stream { display:flex; flex-wrap:wrap; gap:5px; padding:14px; background:var(--card);
  border:1px solid var(--line); border-radius:14px }
.emu .stream span { padding:2px 8px; border-radius:7px; white-space:pre;
  font:12.5px/1.55 ui-monospace,Menlo,Consolas,monospace; color:var(--k);
  background:color-mix(in srgb,var(--k) 13%,transparent) }
"""

# Images of fewer pixels are embedded without loss.
SMALL = 256 * 256
# More columns than this become an image: a cell of a grid would be too small for its number.
MOST_COLUMNS = 16
# From few to many: our own, rising in lightness, so that it reads in grey too.
HEAT = np.array(
    [(27, 24, 66), (112, 40, 122), (206, 70, 96), (247, 152, 74), (253, 234, 165)], np.float64
)


def status(text: str, is_error: bool = False) -> str:
    """A sentence below the buttons."""
    kind = "says wrong" if is_error else "says"
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>' if text else ""


def gallery(pictures: Sequence[Picture], prompt: str) -> str:
    """Images as far as they are drawn; of several, the one with the likeliest caption is marked."""
    nats = [picture.nats for picture in pictures]
    best = int(np.argmin(nats)) if len(nats) > 1 and None not in nats else None
    cards = []
    for at, picture in enumerate(pictures):
        h, w = picture.size
        shown = "" if picture.pixels is None else _image(picture.pixels, prompt)
        done = picture.rows == h
        tag = f"{h} × {w} codes" if done else f"row {picture.rows} of {h}" if picture.rows else ""
        if at == best:
            tag = "★ likeliest caption"
        cards.append(
            f'<figure><div class="frame" style="aspect-ratio:{w}/{h}"><div class="drawn"'
            f' style="height:{100 * picture.rows / h:.2f}%">{shown}</div></div>'
            f"<figcaption>{tag}</figcaption></figure>"
        )
    few = " few" if len(cards) < 3 else ""
    return f'<div class="emu gallery{few}">{"".join(cards)}</div>'


def screen(film: Film, prompt: str) -> str:
    """A clip as far as it is filmed, in a loop."""
    if film.frames is None:
        inner = '<div class="frame" style="aspect-ratio:1"></div>'
    else:
        t, height, width = film.frames.shape[:3]
        clip = page.image(film.frames, prompt or "a clip", t / film.fps, lossless=width < 256)
        inner = f'<div class="frame" style="aspect-ratio:{width}/{height}">{clip}</div>'
    if not film.done:
        tag = ""
    elif film.clip is None:
        tag = f"row {film.done} of {film.rows}"
    else:
        t, h, w = film.clip.codes.shape
        tag = f"{len(film.frames)} frames, {film.clip.seconds:.2f} s, {t} × {h} × {w} codes"
    return (
        f'<div class="emu gallery one"><figure>{inner}<figcaption>{tag}</figcaption></figure></div>'
    )


def inside(look: Look) -> str:
    """An image from inside."""
    ssim = "" if look.ssim is None else f", SSIM {look.ssim:.3f}"
    most = max(float(look.error.max()), 1.0)
    compared = _figures(
        (_image(look.original, "the image that was uploaded"), "original"),
        (
            _image(look.rebuilt, "what the codes keep of it"),
            f"from its codes: PSNR {look.psnr:.1f} dB{ssim}",
        ),
        (
            _image(heat(look.error / most), "where the two differ"),
            f"error: dark 0, light {most:.0f} of 255",
        ),
    )
    h, w = look.codes.shape
    patches = _means(look.rebuilt, h, w)
    grids = [(cells(look.codes.astype(str), patches), f"{h} × {w} codes, on their mean colours")]
    if look.nats is not None:
        bits = look.nats / math.log(2)
        top = max(float(bits.max()), 1e-6)
        texts = np.array([f"{value:.1f}" for value in bits.flat]).reshape(h, w)
        grids.append((
            cells(texts, heat(bits / top)),
            f"surprisal of each code in bits: mean {bits.mean():.1f}, most {top:.1f}",
        ))  # fmt: skip
    counts = ", ".join(f"{count:,} {name}" for name, count in look.counts.items())
    parts = [
        _part("What the codes keep", compared),
        _part("Codes and how likely they are", _figures(*grids), look.why_not),
        _part(
            f"Token stream: {counts}",
            page.legend(list(CLASSES.values())) + page.token_stream(look.tokens),
        ),
    ]
    return f'<div class="emu">{"".join(parts)}</div>'


def cells(texts: np.ndarray, colors: np.ndarray) -> str:
    """A grid of texts str [h, w] on colours uint8 [h, w, 3]; a wide one has no texts."""
    h, w = texts.shape
    if w > MOST_COLUMNS:
        return (
            f'<div class="grained">{page.image(colors, f"{h} x {w} values", lossless=True)}</div>'
        )
    spans = []
    for text, color in zip(texts.flat, colors.reshape(-1, 3).tolist(), strict=True):
        # Luminance of BT.709: black or white is what reads better.
        ink = "#111" if np.dot(color, (0.2126, 0.7152, 0.0722)) > 128 else "#fff"
        spans.append(
            f'<span style="background:rgb({color[0]},{color[1]},{color[2]});color:{ink}">'
            f"{html.escape(text)}</span>"
        )
    style = f"grid-template-columns:repeat({w},1fr);--columns:{w}"
    return f'<div class="cells"><div style="{style}">{"".join(spans)}</div></div>'


def heat(values: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] of numbers, 0 dark to 1 light."""
    at = np.clip(values, 0, 1) * (len(HEAT) - 1)
    channels = [np.interp(at, np.arange(len(HEAT)), channel) for channel in HEAT.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _means(pixels: np.ndarray, h: int, w: int) -> np.ndarray:
    """Mean colours of the h x w parts of an image, uint8 [h, w, 3]."""
    parts = pixels.reshape(h, len(pixels) // h, w, pixels.shape[1] // w, 3)
    return parts.mean(axis=(1, 3)).round().astype(np.uint8)


def _image(pixels: np.ndarray, text: str) -> str:
    return page.image(pixels, text, lossless=pixels.shape[0] * pixels.shape[1] <= SMALL)


def _figures(*pairs: tuple[str, str]) -> str:
    figures = "".join(
        f"<figure>{shown}<figcaption>{html.escape(text)}</figcaption></figure>"
        for shown, text in pairs
    )
    return f'<div class="figures">{figures}</div>'


def _part(title: str, shown: str, note: str = "") -> str:
    return f"<section><h3>{html.escape(title)}</h3>{shown}{status(note)}</section>"
