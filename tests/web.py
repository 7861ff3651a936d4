"""A web server for tests, on this machine alone, which fails as it is told."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Site:
    """What the server has, how it answers, and what it was asked.

    Attributes:
        address: of the server, http://127.0.0.1:PORT.
        files: content by path.
        faults: what to do with the next requests, first to last, by path; each is

            ("status", 503): answer with this status.
            ("cut", 1000): close the connection after this many bytes of the answer's content.
            ("length", 1000): say this Content-Length, whatever is sent.
            ("slow", 0.01): wait so many seconds before each kilobyte.
        always: a fault for each request to a path that has no other.
        takes_ranges: whether parts can be asked for.
        versions: whether files have an ETag.
        redirects: target by path.
        requests: (path, headers) of each request.
    """

    def __init__(self):
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple[str, float]]] = {}
        self.always: dict[str, tuple[str, float]] = {}
        self.takes_ranges = True
        self.versions = True
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@contextmanager
def serve() -> Iterator[Site]:
    site = Site()

    class Handler(_Handler):
        served = site

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Site

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        """Tell what there is as the Hugging Face hub does, with a commit."""
        content = self.served.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hash(content)}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        site = self.served
        site.requests.append((self.path, dict(self.headers)))
        faults = site.faults.get(self.path)
        fault, value = faults.pop(0) if faults else site.always.get(self.path, ("", 0))
        if fault == "status":
            return self.send_error(value)
        if self.path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[self.path])
            return self.end_headers()
        if self.path not in site.files:
            return self.send_error(404)

        # The head of the answer
        content = site.files[self.path]
        first = 0
        if site.takes_ranges and "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(value if fault == "length" else len(content) - first))
        if site.versions:
            self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()

        # Its content
        body = content[first:]
        if fault == "cut":
            body = body[:value]
        step = 1024 if fault == "slow" else max(1, len(body))
        try:
            for start in range(0, len(body), step):
                if fault == "slow":
                    time.sleep(value)
                self.wfile.write(body[start : start + step])
        except OSError:  # the reader has gone
            pass
