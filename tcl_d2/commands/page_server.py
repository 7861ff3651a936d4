"""The server of the web page: who may ask, how much, how it does, what is logged, and how it stops."""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import gradio as gr
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from ..runs.signals import SignalCatcher
from ..utils.errors import named
from ..utils.upstream import num_waiting
from ..version import __version__
from .page import Page

HEALTH = "/health"
KEPT_VISITORS = 50  # whose last results are kept, of up to 65 MB each
PATIENCE = 60  # seconds that the requests that are computed have when the server is stopped


def serve(blocks: gr.Blocks, page: Page, queue_size: int, max_megabytes: int, **options: object) -> None:
    """Serve the page until a signal stops it: what is computed is answered then, what waits for the model is refused.

    Args:
        queue_size: requests that wait, of all visitors together; more are told that the page is busy.
        max_megabytes: size of a file.
        options: of gradio's launch.
    """

    async def health() -> JSONResponse:
        state = {"version": __version__, "model": page.methods[0][0], "waiting": num_waiting(blocks)}
        return JSONResponse(state, headers={"Cache-Control": "no-store"})

    blocks.queue(max_size=queue_size, api_open=False)  # api_open: whether programs may pass the queue by
    max_bytes = max_megabytes * 2**20
    app = {"routes": [APIRoute(HEALTH, health)], "max_body_size": max_bytes + 2**20}  # with what is around the file
    with SignalCatcher() as stop:
        blocks.launch(
            max_file_size=max_bytes,
            state_session_capacity=KEPT_VISITORS,
            app_kwargs=app,
            show_error=True,
            prevent_thread_lock=True,
            **options,
        )
        log_as_json()
        while not stop.number:
            time.sleep(0.1)

        # Stop
        page.stopping = True
        blocks.server_app.stop_event.set()  # ends gradio's connections that only say that a visitor is there
        blocks.server.should_exit = True
        blocks.server.thread.join(PATIENCE)


# ------------------------------------------------------------------------------------------------- the log


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON; a message that is a dict has the line's entries."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entries = record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info:
            entries["trace"] = self.formatException(record.exc_info)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": moment, **entries})


def read_refusal(record: logging.LogRecord) -> bool:
    """Turn the record of an HTTP request that was refused, of uvicorn's access log, into a line's entries."""
    _, method, path, _, status = record.args
    record.msg, record.args = {"request": f"{method} {path.partition('?')[0]}", "outcome": status}, ()
    return status >= 400


def log_as_json() -> None:
    """Log each request, and each HTTP request that the server refused, as a line of JSON on the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (Page.__module__, "uvicorn.access"):
        log = logging.getLogger(name)
        log.setLevel(logging.INFO)
        log.handlers, log.propagate = [handler], False
    logging.getLogger("uvicorn.access").addFilter(read_refusal)


# ------------------------------------------------------------------------------------------------- visitors


def read_users(path: Path) -> list[tuple[str, str]]:
    """Read a file of "NAME:PASSWORD" lines; OSError or ValueError for another file, or one that others can read."""
    if path.stat().st_mode & 0o077:
        raise ValueError(f"other users of this machine can read the passwords in {path}: chmod 600 {path}")
    with named(str(path)):  # a file that is no text
        lines = path.read_text(encoding="utf-8").splitlines()
    users = {}
    for number, line in enumerate(lines, start=1):
        name, _, password = line.partition(":")
        name = name.strip()
        if not name or not password or name in users:
            raise ValueError(f"line {number} of {path} is no NAME:PASSWORD with a name of its own")
        users[name] = password
    if not users:
        raise ValueError(f"{path} is empty; expected a line NAME:PASSWORD for each visitor")
    return list(users.items())
