"""The page of a Space: a conversation about a picture, and maps over it."""

import os
import signal
import tempfile
import threading
from collections.abc import Mapping
from html import escape

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.events import Dependency  # pyright: ignore[reportMissingImports]

from .answerer import Answerer
from .drawing import STYLE
from .pictures import LARGEST_FILE
from .routing_map import RoutingMap, find_stages


BANK_TITLES = {"teacher": "specific to a teacher", "general": "general"}
QUESTIONS = ("What is in this picture?", "Describe the picture in one sentence.", "Which colours are there?")
INTRODUCTION = "Upload a picture and ask about it. The map shows what happens at each patch of the picture."
# One computation at a time: several would only slow each other down.
COMPUTED = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
DRAWN = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
LONGEST_QUEUE = 32  # visitors who wait; more are turned away
# With a map of up to a megabyte in memory, or several with tiles; the visitor idle for longest must reload the page.
MOST_SESSIONS = 1000
KEPT_SECONDS = 3600  # that an uploaded file is kept
PAGE_STYLE = """
.gradio-container h1 { margin: 0 0 .25rem; overflow-wrap: anywhere; }
.gradio-container h2 { margin: 0; font-size: 1.15rem; }
.hawaii-error {
    position: fixed; bottom: 1rem; left: 50%; transform: translateX(-50%); z-index: 10; width: min(40rem, 92vw);
    margin: 0; padding: .75rem 1rem; border: 1px solid var(--border-color-primary); border-left: 5px solid #D55E00;
    background: var(--background-fill-primary); box-shadow: 0 2px 12px #0004;
}
#picture img { width: 100%; height: 100%; object-fit: contain; }
"""


def example_questions(facts: Mapping) -> list[str]:
    """Returns questions to start with, in the words of training: a small model knows no others."""
    questions = [stage.get("question") for stage in find_stages(facts)]
    known = [question for question in questions if isinstance(question, str) and question]
    return [*dict.fromkeys(known)] or list(QUESTIONS)


def build_page(answerer: Answerer, title: str, facts: Mapping) -> gr.Blocks:
    """
    Builds the page.

    Args:
        answerer (`Answerer`):
            Computes answers and maps.
        title (`str`):
            Name of the model.
        facts (`Mapping`):
            The facts about training, the content of `training.json`; empty if they are not known.
    """
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        path, routing = gr.State(), gr.State()
        page.load(str, None, path, **DRAWN)  # "": no picture; `None`, as at first: no such session
        gr.HTML(f"<h1>{escape(title)}</h1><p>{INTRODUCTION}</p>")
        with gr.Row():
            with gr.Column(min_width=320):
                upload = gr.Image(
                    label="Picture: a new one starts a new conversation",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    buttons=["fullscreen"],
                    height=260,
                    elem_id="picture",
                )
                # Plain text, which `show` escapes; Gradio's buttons would copy it escaped.
                chat = gr.Chatbot(label="Conversation", render_markdown=False, buttons=[], height=340)
                question = gr.Textbox(
                    placeholder="Ask about the picture", submit_btn=True, show_label=False, elem_id="question"
                )
                with gr.Row():
                    stop = gr.Button("Stop", size="sm", min_width=100, elem_id="stop")
                    clear = gr.Button("New conversation", size="sm", min_width=100, elem_id="clear")
                gr.Examples([[text] for text in example_questions(facts)], question, label="For example")
                error = gr.HTML(elem_id="error")
            with gr.Column(min_width=320):
                _add_map_of_adapters(answerer, upload, path, routing)
                importance = gr.HTML(elem_id="importance", render=False)
                computing = []
                if answerer.score_importance is None:
                    importance.render()  # empty
                else:
                    computing = [_add_map_of_importance(answerer, [path, question, chat], importance)]
        inputs, outputs = [question, chat, path], [question, chat, error]
        answering = question.submit(answerer.answer, inputs, outputs, show_progress="minimal", **COMPUTED)
        # In two steps: the old conversation and maps go at once, however long the new picture waits for the model.
        forgetting = upload.input(
            lambda: ([], "", None, "", ""),
            None,
            [chat, path, routing, error, importance],
            cancels=[answering, *computing],
            **DRAWN,
        )
        forgetting.then(
            answerer.look,
            upload,
            [path, routing, error],
            preprocess=False,  # Gradio would open the file itself, with all of Pillow's formats and its own errors
            trigger_mode="always_last",
            **COMPUTED,
        )
        stop.click(None, cancels=answering)
        gr.on([clear.click, chat.clear], lambda: ([], ""), None, [chat, error], cancels=answering, **DRAWN)
    return page


def _add_map_of_adapters(answerer: Answerer, upload: gr.Image, path: gr.State, routing: gr.State) -> None:
    """Adds the map of adapters and its choices. It is drawn once `path` and `routing` are the upload's."""
    banks, is_shown = list(answerer.names) or ["teacher"], bool(answerer.names)
    gr.HTML("<h2>Which adapter acts where</h2>")
    bank = gr.Radio(
        [(BANK_TITLES[name], name) for name in banks],
        value=banks[0],
        label="Adapters",
        info="A colour for each adapter shows where the routers choose it: one of each kind acts at each patch.",
        visible=is_shown,
        elem_id="bank",
    )
    layers = answerer.num_layers
    has_choice = is_shown and layers > 1
    # Hidden where there is no choice; Gradio refuses a slider with one value.
    layer = gr.Slider(1, max(layers, 2), layers, step=1, label="Layer", visible=has_choice, elem_id="layer")
    is_over_all = gr.Checkbox(
        label="All layers: the adapter chosen in most of them", visible=has_choice, elem_id="all_layers"
    )
    adapters = gr.HTML(answerer.draw_routing(None, banks[0], 1, False), elem_id="adapters")

    def draw(picture: dict | None, seen: str | None, routing: RoutingMap | None, bank, layer, is_over_all) -> str:
        is_of_picture = picture is not None and picture["path"] == seen
        layer = min(max(int(layer or 1), 1), layers)  # Gradio checks nothing without `preprocess`
        return answerer.draw_routing(routing if is_of_picture else None, bank, layer, is_over_all)

    # One event for all, which runs once at a time, and again with the newest values. Of several events, the slowest
    # would win. No other event starts with `upload.change`: Gradio would repeat it, too.
    inputs = [upload, path, routing, bank, layer, is_over_all]
    changes = [changed.change for changed in (upload, routing, bank, layer, is_over_all)]
    gr.on(changes, draw, inputs, adapters, preprocess=False, **DRAWN)  # as for `look`, Gradio opens no picture


def _add_map_of_importance(answerer: Answerer, inputs: list, importance: gr.HTML) -> Dependency:
    """Adds the map and the button that computes it. Returns this event."""
    gr.HTML(
        "<h2>Which patches matter</h2><p>Light patches matter most: to each teacher, and to the words of the "
        "question. These scores weigh the patches in training.</p>"
    )
    compute = gr.Button(
        "Compute for the question in the field, or else the last one", size="sm", elem_id="compute_importance"
    )
    importance.render()
    return compute.click(answerer.draw_importance, inputs, importance, **COMPUTED)


def serve_page(
    answerer: Answerer, title: str, facts: Mapping, host: str | None = None, port: int | None = None
) -> None:
    """
    Serves the page until Ctrl-C or SIGTERM, and then deletes what visitors have uploaded.

    Args:
        answerer, title, facts:
            As for [`build_page`].
        host (`str`, *optional*):
            Address to listen at; that of the variable `GRADIO_SERVER_NAME`, or 127.0.0.1, if not given.
        port (`int`, *optional*):
            Its port; the first free one from 7860 if not given.

    Raises:
        OSError: `port` is in use.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent to Gradio's authors
    # Gradio waits for its own answer, which a proxy of the network could not fetch.
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [known, "localhost", "127.0.0.1"]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="hawaii-space-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(answerer, title, facts).queue(max_size=LONGEST_QUEUE)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                max_file_size=LARGEST_FILE,
                state_session_capacity=MOST_SESSIONS,
                css=PAGE_STYLE + STYLE,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
            print(f"The page is at {url} (Ctrl-C stops it).", flush=True)  # a title may hold control characters
            threading.Event().wait()
        except KeyboardInterrupt:
            print("Stopped.", flush=True)
        finally:
            page.close(verbose=False)
