"""The page: four tabs, and which button does what."""

from collections.abc import Callable, Sequence
from typing import Any

from emu3_jax.demo import views
from emu3_jax.demo.handlers import Handlers
from emu3_jax.demo.tabs import talking
from emu3_jax.demo.tabs.filming import MOST_FRAMES, Film
from emu3_jax.demo.tabs.imaging import MOST_IMAGES, Picture
from emu3_jax.demo.uploads import LIMITS
from emu3_jax.foreign import optional
from emu3_jax.generate.decoding.decoders.registry import DECODERS

gr = optional("gradio", "the page", "-r requirements-demo.txt")

# Seconds: how often files of visitors are looked at, and how old they become.
LOOK_EVERY, KEPT = 300, 3600
# Progress is shown by what is yielded, and nothing can be called but by the page.
HIDDEN = dict(show_progress="hidden", api_visibility="private")
SIZES = ["1:1", "4:3", "3:4", "16:9", "9:16"]


def page(handlers: Handlers, name: str) -> Any:
    """The page, gradio's `Blocks`, of a model of this name; nothing of it is an API."""
    with gr.Blocks(
        title="emu3_jax", analytics_enabled=False, delete_cache=(LOOK_EVERY, KEPT)
    ) as blocks:
        gr.Markdown(f"# Emu3 in JAX\nOne transformer draws, films, describes. Model: `{name}`.")
        with gr.Tab("Draw"):
            _draw(handlers)
        with gr.Tab("Chat"):
            _chat(handlers)
        with gr.Tab("Film"):
            _film(handlers)
        with gr.Tab("Look inside"):
            _inside(handlers)
        blocks.unload(_leave(handlers))
    return blocks


def _leave(handlers: Handlers) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        handlers.stop(request.session_hash)

    return leave


def _on(trigger: Callable, call: Callable, inputs: list, outputs: list) -> None:
    """call(visitor, *inputs) at an event. If the first of what it yields is None, it stays."""

    def handle(request: gr.Request, *values):
        for first, *others in call(request.session_hash, *values):
            yield gr.skip() if first is None else first, *others

    trigger(handle, inputs, outputs, **HIDDEN)


def _stops(button: Any, handlers: Handlers, tab: str) -> None:
    def stop(request: gr.Request) -> None:
        handlers.stop(request.session_hash, tab)

    button.click(stop, concurrency_limit=None, **HIDDEN)


def _upload(label: str) -> Any:
    """A field for an image whose value is the path of the file, unread.

    Gradio's own would decode it before its size is known.
    """
    field = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=230)
    field.preprocess = lambda payload: payload and payload.path
    return field


def _buttons(go: str) -> tuple[Any, Any]:
    with gr.Row():
        return gr.Button(go, variant="primary", min_width=120), gr.Button("Stop", min_width=120)


def _settings(handlers: Handlers) -> tuple[Any, Any, Any]:
    """Guidance, temperature and seed."""
    sampling, plain = handlers.exhibit.sampling, dict(buttons=[])
    low, high = dict(info="1: off", step=0.5, **plain), dict(info="0: greedy", step=0.05, **plain)
    return (
        gr.Slider(1, 12, sampling.guidance, label="Guidance", **low),
        gr.Slider(0, 2, sampling.temperature, label="Temperature", **high),
        gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1),
    )


def _size(handlers: Handlers) -> Any:
    h, w = (round(handlers.exhibit.area**0.5 / handlers.exhibit.limits.spatial_factor),) * 2
    return gr.Dropdown(
        [f"{h}x{w}", *SIZES],
        value=f"{h}x{w}",
        label="Size",
        info="rows x columns of codes, or width:height",
        allow_custom_value=True,
    )


def _examples(prompts: Sequence[str], prompt: Any) -> None:
    if prompts:
        gr.Examples(list(prompts), prompt, label="Try")


def _draw(handlers: Handlers) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox(label="Caption", placeholder="What is to be drawn", max_lines=4)
            go, stop = _buttons("Draw")
            said = gr.HTML(padding=False)
            _examples(handlers.exhibit.prompts, prompt)
        with gr.Column(scale=3, min_width=300):
            images = gr.HTML(views.gallery([Picture((1, 1))] * 4, ""), padding=False)
    with gr.Accordion("Settings"):
        with gr.Row():
            size = _size(handlers)
            count = gr.Slider(1, MOST_IMAGES, 4, step=1, label="Images", buttons=[])
            decoder = gr.Radio(list(DECODERS), value="sequential", label="Decoder")
        with gr.Row():
            guidance, temperature, seed = _settings(handlers)
    inputs = [prompt, size, count, guidance, temperature, decoder, seed]
    for trigger in (go.click, prompt.submit):
        _on(trigger, handlers.draw, inputs, [images, said])
    _stops(stop, handlers, "draw")


def _film(handlers: Handlers) -> None:
    exhibit, many = handlers.exhibit, dict(step=1, buttons=[])
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox(label="Caption", placeholder="What is to be filmed", max_lines=4)
            first = _upload("First image (may be left out)")
            gr.HTML(f'<p class="says">{LIMITS}</p>', padding=False)
            go, stop = _buttons("Film")
            said = gr.HTML(padding=False)
            _examples(exhibit.films, prompt)
        with gr.Column(scale=3, min_width=300):
            empty = views.screen(Film(None, 0, 1, 1.0), "")
            clip, codes = gr.HTML(empty, padding=False), gr.State(time_to_live=KEPT)
            with gr.Row():
                more = gr.Button("Go on", min_width=120)
                new = gr.Slider(1, MOST_FRAMES, 2, label="New latent frames", **many)
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            size = _size(handlers)
            info = f"{exhibit.factor} frames each"
            frames = gr.Slider(
                1, MOST_FRAMES, exhibit.frames, label="Latent frames", info=info, **many
            )
            fps = gr.Number(exhibit.fps, label="Frames per second")
        with gr.Row():
            guidance, temperature, seed = _settings(handlers)
    settings, outputs = [guidance, temperature, seed], [clip, said, codes]
    inputs = [prompt, first, size, frames, fps, *settings]
    for trigger in (go.click, prompt.submit):
        _on(trigger, handlers.film, inputs, outputs)
    _on(more.click, handlers.extend, [codes, prompt, new, *settings], outputs)
    _stops(stop, handlers, "film")


def _chat(handlers: Handlers) -> None:
    if talking.describes_only(handlers.exhibit):
        gr.Markdown("This model was never trained on chats: attach an image, and it describes it.")
    history = gr.Chatbot(label="Conversation", height=430, buttons=[])
    box = gr.MultimodalTextbox(
        placeholder="Ask, and attach images",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        show_label=False,
    )
    said = gr.HTML(padding=False)
    with gr.Row():
        stop = gr.Button("Stop", min_width=120)
        new = gr.Button("New conversation", min_width=120)
    gr.HTML(f'<p class="says">{LIMITS}</p>', padding=False)
    turns = gr.State((), time_to_live=KEPT)

    def say(visitor: str, message: dict, before: list, turns: tuple):
        text, files = message["text"], message["files"]
        asked = [*before, *({"role": "user", "content": {"path": file}} for file in files)]
        asked += [{"role": "user", "content": text}] if text else []
        for answer, words, known in handlers.say(visitor, turns, text, files):
            # A question without an answer is taken back: the conversation is as it was.
            shown = [*asked, {"role": "assistant", "content": answer}] if answer else asked
            yield before if words else shown, words, known, message if words else None

    def handle(request: gr.Request, *values):
        yield from say(request.session_hash, *values)

    box.submit(handle, [box, history, turns], [history, said, turns, box], **HIDDEN)
    for trigger in (new.click, history.clear):
        trigger(lambda: ([], "", ()), None, [history, said, turns], **HIDDEN)
    _stops(stop, handlers, "chat")
    _stops(new, handlers, "chat")


def _inside(handlers: Handlers) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = _upload("Image")
            gr.HTML(f'<p class="says">{LIMITS}</p>', padding=False)
            caption = gr.Textbox(
                label="Caption",
                info="Enter: how likely the codes are after it.",
                max_lines=3,
            )
            said = gr.HTML(padding=False)
        with gr.Column(scale=5, min_width=300):
            inside = gr.HTML(padding=False)

    def look(*inputs):
        yield handlers.inspect(*inputs)

    for trigger in (image.change, caption.submit):
        _on(trigger, look, [image, caption], [inside, said])
