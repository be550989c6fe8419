"""The page of `serve`, where Gradio is installed: who may reach it, what it says, and what is left when it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image, ImageDraw

from lightning_meta import extras
from lightning_meta.cli import serve
from lightning_meta.cli.answers import MOST_BYTES, in_frame
from lightning_meta.cli.predict import load_run, probabilities, read_task
from lightning_meta.errors import ConfigError
from tests.cli.test_predict import LEVELS, at_work, work  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


# ---- without Gradio -------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "RequirementCache", lambda *_: False)
    with pytest.raises(ConfigError, match=r"^serve needs gradio>=\S+, .* pip install -r requirements-serve\.txt$"):
        serve.main(["anything"])


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_there_is_not_is_told_in_one_line(port: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--port {port} must be from 1 to 65535\.$"):
        serve.main(["anything", "--port", port])


def test_it_never_asks_for_a_tunnel_and_listens_where_it_is_told() -> None:
    asked: dict[str, Any] = {}
    page = SimpleNamespace(launch=lambda **options: asked.update(options))
    serve.launch(SimpleNamespace(themes=SimpleNamespace(Base=lambda **_: "theme")), page, "127.0.0.1", 7860)  # type: ignore[arg-type]
    assert asked["share"] is False and asked["server_name"] == "127.0.0.1"
    assert asked["max_file_size"] == MOST_BYTES and asked["run_history"] is False


def test_data_that_are_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"texts was trained on CLINC150; serve is for images\. .*: predict texts\.$"):
        serve.check_images(SimpleNamespace(name="CLINC150"), Path("texts"))


# ---- with Gradio ----------------------------------------------------------------------------------------------------


class Page:
    """A page that runs in a process of its own, as users have it."""

    def __init__(self, run: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (temporary := folder / "temporary").mkdir(exist_ok=True)
        self.temporary, self.url = temporary, f"http://127.0.0.1:{self.port}/"
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightning_meta", "serve", run, "--port", str(self.port)],
            cwd=folder, env={**os.environ, "PYTHONPATH": python_path, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.said = [self.process.stdout.readline() for _ in range(2)]

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@pytest.fixture(scope="module")
def page(work: Path) -> Iterator[Page]:  # noqa: F811
    pytest.importorskip("gradio_client")
    pytest.importorskip("gradio")
    made = Page("runs/protonet/version_0", work)
    yield made
    if made.process.poll() is None:
        made.process.kill()


def images(*paths: Path) -> list[dict[str, Any]]:
    from gradio_client import handle_file

    return [{"image": handle_file(str(path)), "caption": None} for path in paths]


def ask(page: Page, query: list[Path], *classes: tuple[str, list[Path]]) -> tuple[dict[str, float], str]:
    """The probabilities by name, and the notes."""
    from gradio_client import Client

    client = Client(page.url, verbose=False)
    given = [*classes, *[("", [])] * (8 - len(classes))]
    arguments = [images(*query), *(name for name, _ in given), *(images(*paths) for _, paths in given)]
    label, _, notes = client.predict(*arguments, api_name="/ask_image")
    found = {one["label"]: one["confidence"] for one in label["confidences"]} if label else {}
    return found, notes


def support(folder: Path, *names: str) -> list[tuple[str, list[Path]]]:
    return [(name, sorted((folder / "three" / name).glob("*.png"))) for name in names]


def test_the_page_answers_as_predict_does(page: Page, work: Path) -> None:  # noqa: F811
    assert "ProtoNet, trained on ImageFolder" in page.said[0] and f"http://127.0.0.1:{page.port}" in page.said[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        module, data, _ = load_run(Path("runs/protonet/version_0"))
        task = read_task(Path("three"), Path("query"), data)
        expected = probabilities(module, task)[[path.name for path in task.files].index("white_0.png")]
    found, notes = ask(page, [work / "query/white_0.png"], *support(work, *LEVELS))
    assert notes == ""
    assert found == pytest.approx(dict(zip(task.classes, expected.tolist(), strict=True)), abs=1e-5)


def test_a_drawing_becomes_an_example_and_is_asked_for(page: Page, work: Path) -> None:  # noqa: F811
    from gradio_client import Client, handle_file

    canvas = Image.new("RGB", (280, 280), "white")
    ImageDraw.Draw(canvas).line((30, 30, 120, 90), fill="black", width=12)
    canvas.save(work / "canvas.png")
    drawn = {"background": None, "layers": [], "composite": handle_file(str(work / "canvas.png"))}
    client = Client(page.url, verbose=False)
    notes, first, second, *_ = client.predict(drawn, 1, *[[]] * 8, api_name="/add")
    assert notes == "" and not isinstance(first, list)
    (example,) = second
    with Image.open(example["image"]) as found:
        assert found.convert("L").size == in_frame(canvas).size
    names = ("black", "white")
    given = [*names, *[""] * 6, *(images(*paths) for _, paths in support(work, *names)), *[[]] * 6]
    label, *_ = client.predict(drawn, *given, api_name="/ask_drawing")
    assert {one["label"] for one in label["confidences"]} == {*names}


def test_mistakes_are_told_in_one_line(page: Page, work: Path) -> None:  # noqa: F811
    (bad := work / "bad.png").write_text("no image")
    query, (black, white) = [work / "query/white_0.png"], support(work, "black", "white")
    for asked, classes, message in (
        ([bad], [black, white], "bad.png is not an image that can be read."),
        (query, [], "There are no support images; give a few of each of two or more classes."),
        (query, [black], "There are images of one class only, black; give some of another."),
        ([], [black, white], "There is no image in question; drop one, or draw it."),
    ):
        found, notes = ask(page, asked, *classes)
        assert (found, notes) == ({}, message)


def test_it_takes_no_large_file_and_gives_no_file_of_the_machine(page: Page, work: Path) -> None:  # noqa: F811
    edge = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = edge + bytes(MOST_BYTES + 1) + b"\r\n--edge--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    with pytest.raises(HTTPError, match="413"):
        urlopen(Request(f"{page.url}gradio_api/upload", body, headers))
    for place in (work / "experiment.yaml", Path("/etc/hostname")):
        with pytest.raises(HTTPError, match=r"403|404"):
            urlopen(f"{page.url}gradio_api/file={place}")


def test_it_listens_on_this_machine_alone(page: Page) -> None:
    listening = {
        line.split()[1].partition(":")[0]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == page.port
    }
    assert listening == {"0100007F"}  # 127.0.0.1, and not 0.0.0.0
    six = Path("/proc/net/tcp6")
    lines = six.read_text().splitlines()[1:] if six.exists() else []
    assert not [one for one in lines if one.split()[1].endswith(f":{page.port:04X}") and one.split()[3] == "0A"]


def test_nothing_is_left_when_it_ends(page: Page, work: Path) -> None:  # noqa: F811
    """The last test of this page."""
    assert any(page.temporary.glob("lightning_meta_serve_*/**/*.png")), "uploads and drawings, while it is there"
    before = {path for path in work.rglob("*") if page.temporary not in path.parents}
    page.end()
    assert [*page.temporary.iterdir()] == []
    assert not [path for path in before if ".gradio" in path.parts or path.suffix == ".pem"]


def test_a_port_in_use_is_told_in_one_line(work: Path) -> None:  # noqa: F811
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "lightning_meta", "serve", "runs/protonet/version_0", "--port", port], cwd=work,
            capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": python_path},
        )  # fmt: skip
    assert done.returncode == 1
    assert f"error: 127.0.0.1:{port} cannot be listened on; take another --port" in done.stderr
    assert "Traceback" not in done.stderr
