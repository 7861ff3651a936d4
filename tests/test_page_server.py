"""The web page behind a server: who is let in, limits, the health address, the log, and how it stops."""

import json
import logging
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from tcl_d2.predictor import TCLPredictor

pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
import httpx  # noqa: E402  (gradio brings it)

from tcl_d2.commands.app import main  # noqa: E402  (it needs gradio)
from tcl_d2.commands.options.app import argument_parser  # noqa: E402
from tcl_d2.commands.page import Page  # noqa: E402
from tcl_d2.commands.page_layout import build_page  # noqa: E402
from tcl_d2.commands.page_server import read_users, serve  # noqa: E402

USER = ("ada", "a pass:word")


@pytest.mark.fault("web page: a file of passwords that is missing, empty, malformed or open to others", "one message")
@pytest.mark.parametrize(
    "text, mode, reason",
    [
        ("ada:secret\n", 0o644, "chmod 600"),
        ("", 0o600, "is empty"),
        ("ada:secret\nbob\n", 0o600, "line 2 of .* NAME:PASSWORD"),
        ("ada:\n", 0o600, "line 1"),
        (":secret\n", 0o600, "line 1"),
        ("ada:secret\nada :other\n", 0o600, "line 2 .* name of its own"),
        (b"\xff\xfe:secret\n", 0o600, "users.txt"),
        (None, 0o600, "users.txt"),
    ],
)
def test_files_of_passwords_that_cannot_be_used_are_named(tmp_path, text, mode, reason):
    path = tmp_path / "users.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
    with pytest.raises((OSError, ValueError), match=reason):
        read_users(path)


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "users.txt"
    path.touch(mode=0o600)
    path.write_text(f"{':'.join(USER)}\ngrace :hopper\n")
    return path


def test_passwords_may_have_colons(users):
    assert read_users(users) == [USER, ("grace", "hopper")]


@pytest.mark.fault("web page: a limit or a file of passwords that is none", "one message at once")
@pytest.mark.parametrize("option, value", [("--max-size", 0), ("--queue-size", 0), ("--auth", "/nowhere/users.txt")])
def test_options_that_cannot_be_used_are_named(option, value):
    """Before the model is read."""
    args = ["--port", free_port(), option, value, "--opts", "MODEL.WEIGHTS", "read after it.pth"]
    with pytest.raises(SystemExit, match=f"error: {option}"):
        main(argument_parser().parse_args(list(map(str, args))))


@pytest.mark.fault("web page: another user's page on the same machine", "each has a folder of its own for uploads")
def test_uploads_have_a_folder_of_their_own(monkeypatch):
    """Gradio's own is the first user's alone, and everybody may read in it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "to be restored")
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    folders = []

    def look(blocks, *_args, **_options):
        folders.append(Path(blocks.GRADIO_CACHE))
        assert folders[0].stat().st_mode & 0o777 == 0o700

    monkeypatch.setattr("tcl_d2.commands.app.serve", look)
    main(argument_parser().parse_args(["--port", str(free_port())]))
    assert not folders[0].exists()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def own_logs():
    """Logs as they were, after the test."""
    logs = [logging.getLogger(name) for name in (Page.__module__, "uvicorn.access")]
    before = [(log.handlers, log.filters[:], log.level, log.propagate) for log in logs]
    yield
    for log, state in zip(logs, before):
        log.handlers, log.filters, log.level, log.propagate = state


@pytest.mark.fault(
    "web page: requests past its limits, without a login, or while it stops", "refused, each with a message"
)
def test_page_is_served(tmp_path, monkeypatch, own_logs, capsys):
    """The server is in this thread, which alone gets signals, and the visitors are in another."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    gate, call = Event(), TCLPredictor.__call__
    monkeypatch.setattr(TCLPredictor, "__call__", lambda *args, **kwargs: gate.wait(30) and call(*args, **kwargs))
    for width, name in ((96, "small"), (1200, "large")):
        Image.new("RGB", (width, 900), "green").save(tmp_path / f"{name}.png")

    page, port = Page(TCLPredictor("shapes/trained.yaml"), max_megapixels=1), free_port()
    with ThreadPoolExecutor(1) as pool:
        visit = pool.submit(visit_and_stop, f"http://127.0.0.1:{port}", tmp_path, gate)
        serve(build_page(page, []), page, 1, 1, server_name="127.0.0.1", server_port=port, auth=[USER])
        visit.result()

    # Its log
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    outcomes = {(line["request"], line["outcome"]) for line in lines}
    assert {("segment", "answered"), ("POST /login", 400), ("POST /gradio_api/queue/join", 503)} <= outcomes
    answered = next(line for line in lines if line["outcome"] == "answered")
    assert answered["words"] == 2 and answered["size"] == [96, 900] and answered["seconds"] > 0
    assert "brick" not in str(lines) and USER[1] not in str(lines)


def visit_and_stop(address: str, folder: Path, gate: Event) -> None:
    """Ask for what is refused, fill the queue, stop the server, and see what each gets."""
    wait_for(f"{address}/health")
    try:
        check_refusals(address)
        large, small = (gradio_client.handle_file(folder / f"{name}.png") for name in ("large", "small"))
        client = gradio_client.Client(address, auth=USER, verbose=False, download_files=False)

        def ask(picture):
            return client.submit(picture, ["brick, grass"], api_name="/run")

        with pytest.raises(gradio_client.exceptions.AppError, match="1200 x 900 .* at most 1 million"):
            ask(large).result(30)

        computed = ask(small)
        await_state(lambda: computed.status().code.name == "PROCESSING")
        waits = ask(small)
        await_state(lambda: httpx.get(f"{address}/health").json()["waiting"] == 1)
        with pytest.raises(gradio_client.utils.QueueError, match="full"):
            ask(small).result(30)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # until the server stops
        gate.set()
    assert "%" in computed.result(30)[1]
    with pytest.raises(gradio_client.exceptions.AppError, match="being stopped"):
        waits.result(30)


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            return httpx.get(address).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
    pytest.fail("the page did not start")


def check_refusals(address: str) -> None:
    """Ask without a login, then for too much."""
    while not logging.getLogger("uvicorn.access").filters:  # the log begins a moment after the page answers
        time.sleep(0.1)
    health = httpx.get(f"{address}/health").json()
    assert health["waiting"] == 0 and health["model"] == "TCL" and re.match(r"\d+\.\d+", health["version"])
    assert httpx.get(f"{address}/config").status_code == 401
    assert httpx.post(f"{address}/gradio_api/upload", files={"files": b""}).status_code == 401
    assert httpx.post(f"{address}/login", data={"username": "ada", "password": "hopper"}).status_code == 400

    with httpx.Client(base_url=address) as client:
        client.post("/login", data={"username": USER[0], "password": USER[1]}).raise_for_status()
        file = client.post("/gradio_api/upload", files={"files": bytes(2**20 + 1)})
        assert file.status_code == 413 and "1048576" in file.text
        for content in (b"[" * 2**22, iter([b"[" * 2**20] * 4)):  # with its length, and without
            assert client.post("/gradio_api/queue/join", content=content).status_code == 413
        body = {"data": [], "session_hash": "a"}
        assert client.post("/gradio_api/run/run", json=body).status_code == 404  # past the queue


def await_state(reached) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)
