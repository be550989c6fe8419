"""A page in the browser for a trained meta-learner: name classes by a few images, and ask what another one is.

python -m lightning_meta serve RUN [--host 127.0.0.1] [--port 7860]

Images are dropped or drawn. The page is for this machine alone unless `--host` says otherwise, asks no other server for
anything, and keeps its files in a folder of its own that is removed when it ends. What it answers is in `answers.py`.
"""

import argparse
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from lightning_meta.cli.answers import MOST_BYTES, MOST_IMAGES, Answerer, drawing
from lightning_meta.cli.predict import load_run, trained_run
from lightning_meta.datamodules import files
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import ConfigError, DataError, UserError
from lightning_meta.extras import check, need

log = logging.getLogger(__name__)
LOCAL = "127.0.0.1"
CANVAS, BRUSH = 280, 12  # pixels
KEPT = 3600  # seconds for which uploads are kept while the page is there
# Of galleries that images are dropped on. They hand on files, which are read where a bad one is told of.
IMAGES: dict[str, Any] = {
    "type": "filepath", "interactive": True, "height": 150, "columns": 3, "fit_columns": False,
    "object_fit": "contain", "buttons": [],
}  # fmt: skip
# The canvas waits for its tool to be chosen: there is one to draw with.
TAKE_BRUSH = """() => {
  const wait = setInterval(() => {
    const brush = document.querySelector('button[title="Brush"], button[aria-label="Brush"]');
    if (brush) { clearInterval(wait); if (!brush.classList.contains("highlight")) brush.click(); }
  }, 200);
}"""
# After a drawing was added; where something was wrong, it stays.
CLEAR = f"""(wrong) => {{
  if (wrong) return;
  document.querySelector('button[title="Clear canvas"], button[aria-label="Clear canvas"]')?.click();
  setTimeout({TAKE_BRUSH}, 300);
}}"""
CSS = """
.gradio-container {max-width: 1100px !important; margin: auto; overflow-x: hidden}
footer {display: none !important}
"""


def make_page(gradio: ModuleType, answerer: Answerer, title: str, folder: Path) -> Any:
    """The page as Gradio's `Blocks`. Its drawings go into `folder`."""
    count = answerer.classes
    names = [f"class {number}" for number in range(1, count + 1)]

    def add(canvas: dict[str, Any] | None, chosen: int, *examples: list[tuple[str, Any]] | None) -> list[Any]:
        """What is wrong, or nothing, and the examples of all classes with the drawing among those of the chosen one."""
        try:
            path = drawing(_composite(canvas), folder)
        except DataError as error:
            return [str(error), *(gradio.skip() for _ in examples)]
        of_class = [[*(examples[k] or []), (str(path), None)] if k == chosen else gradio.skip() for k in range(count)]
        return ["", *of_class]

    def ask(query: Path | None, given: Sequence[Any]) -> list[Any]:
        named = [(name or "", _paths(images)) for name, images in zip(given[:count], given[count:], strict=True)]
        try:
            found = answerer.answer(named, query)
        except UserError as error:
            return [None, gradio.update(value=None, visible=False), str(error)]
        picture = folder / f"answer_{os.urandom(4).hex()}.png"
        if found.picture is not None:
            found.picture.savefig(picture)
        shown = gradio.update(value=str(picture) if found.picture else None, visible=found.picture is not None)
        return [found.probabilities, shown, "\n\n".join(found.notes)]

    def ask_drawing(canvas: dict[str, Any] | None, *given: Any) -> list[Any]:
        try:
            return ask(drawing(_composite(canvas), folder), given)
        except DataError as error:
            return [None, gradio.update(value=None, visible=False), str(error)]

    def ask_image(images: list[tuple[str, Any]] | None, *given: Any) -> list[Any]:
        paths = _paths(images)
        return ask(paths[-1] if paths else None, given)

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        way = f"It names {count} classes." if answerer.classes == getattr(answerer.module, "n_way", None) else ""
        gradio.Markdown(
            f"## {title}\nGive a few images of each class, dropped or drawn, then one in question. {way} At most "
            f"{MOST_IMAGES} images of a class, {MOST_BYTES // 1_000_000} MB each."
        )
        with gradio.Row():
            with gradio.Column(min_width=320):
                canvas = _canvas(gradio)
                chosen = gradio.Radio([(str(k + 1), k) for k in range(count)], value=0, label="of class")
                add_button = gradio.Button("Add the drawing to its examples")
                draw_button = gradio.Button("What is the drawing?", variant="primary")
                query = gradio.Gallery(label="or drop an image in question", **IMAGES)
                image_button = gradio.Button("What is the image?", variant="primary")
            with gradio.Column(min_width=320):
                label = gradio.Label(label="answer", num_top_classes=count)
                picture = gradio.Image(interactive=False, visible=False, show_label=False, buttons=[], type="filepath")
                notes = gradio.Markdown(elem_id="notes")
        boxes, galleries = [], []
        across = 4 if count % 4 == 0 else 5
        for start in range(0, count, across):
            with gradio.Row():
                for name in names[start : start + across]:
                    with gradio.Column(min_width=160):
                        boxes.append(gradio.Textbox(name, label=f"name of {name}", max_lines=1, max_length=40))
                        galleries.append(gradio.Gallery(label=f"examples of {name}", show_label=False, **IMAGES))
        given, found = [*boxes, *galleries], [label, picture, notes]
        page.load(None, js=TAKE_BRUSH)
        added = add_button.click(
            add, [canvas, chosen, *galleries], [notes, *galleries], api_name="add", show_progress="hidden"
        )
        added.then(None, [notes], js=CLEAR)
        draw_button.click(ask_drawing, [canvas, *given], found, api_name="ask_drawing")
        image_button.click(ask_image, [query, *given], found, api_name="ask_image")
    return page


def _canvas(gradio: ModuleType) -> Any:
    """White paper of a fixed size, and one brush."""
    return gradio.Sketchpad(
        label="draw", type="pil", image_mode="RGB", canvas_size=(CANVAS, CANVAS), fixed_canvas=True, layers=False,
        placeholder="", brush=gradio.Brush(default_size=BRUSH, colors=["#000000"], color_mode="fixed"), transforms=(),
        height=420,
    )  # fmt: skip


def _composite(canvas: dict[str, Any] | None) -> Image.Image | None:
    return canvas["composite"] if canvas else None


def _paths(images: Sequence[tuple[str, Any]] | None) -> list[Path]:
    return [Path(path) for path, _ in images or ()]


def check_images(data: Any, run: Path) -> None:
    """Raise `ConfigError` unless the data of a run make images of a user's like their own."""
    if not isinstance(data, ClassificationDataModule):
        raise ConfigError(f"{run} was trained on {data.name}; serve is for images. Of files of rows: predict {run}.")
    if data.kind is not files.IMAGES:
        raise ConfigError(f"{run} was trained on {data.kind.name}; serve is for images. Of files: predict {run}.")
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (32, 32), "white").save(file := Path(folder) / "white.png")
        data.prepare_image(file)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta serve",
        description="Open a page in the browser where a trained meta-learner names images, dropped or drawn.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run, or its experiment's name")
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="checkpoint (the run's best one)")
    parser.add_argument("--invert", action="store_true", help="exchange dark and light, as of predict")
    parser.add_argument("--host", default=LOCAL, help=f"address to listen on ({LOCAL}: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="(7860)")
    given = parser.parse_args(arguments)
    if not 1 <= given.port <= 65535:
        raise ConfigError(f"--port {given.port} must be from 1 to 65535.")
    check("gradio", "serve")
    module, data, checkpoint = load_run(trained_run(given.run), given.ckpt_path)
    check_images(data, given.run)
    title = f"{type(module).__name__}, trained on {data.name}"
    if given.host != LOCAL:
        log.warning("everybody who can reach %s:%s can use this page.", given.host, given.port)
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="lightning_meta_serve_") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when it is imported
        gradio = need("gradio", "serve")
        page = make_page(gradio, Answerer(module.eval(), data, given.invert), title, Path(folder))
        try:
            launch(gradio, page, given.host, given.port)
        except OSError as error:
            raise ConfigError(
                f"{given.host}:{given.port} cannot be listened on; take another --port or --host. ({error})"
            ) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        print(f"{title}: {checkpoint}\nhttp://{given.host}:{given.port} (Ctrl+C ends it)", flush=True)
        ended.wait()
        page.close(verbose=False)


def launch(gradio: ModuleType, page: Any, host: str, port: int) -> None:
    """Listen, without a tunnel, a history of runs or fonts from elsewhere."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    page.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, ssr_mode=False,
        max_file_size=MOST_BYTES, footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False,
        theme=gradio.themes.Base(**fonts), css=CSS,
    )  # fmt: skip
