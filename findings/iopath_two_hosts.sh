#!/usr/bin/env bash
# iopath 0.1.10: the cache of HTTPURLHandler names a file by the address's path alone. The file of the second of two hosts, at the same
# path, is never asked for: the first host's file is returned for it, also in later processes. Name the cached file by the host too.
# Seen: both addresses give b"first"; the second server got no request.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q iopath==0.1.10
FVCORE_CACHE="$folder/cache" "$folder/env/bin/python" - <<'PYTHON'
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from iopath.common.file_io import HTTPURLHandler, PathManager

asked = []


def serve(content: bytes) -> str:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(content)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


manager = PathManager()
manager.register_handler(HTTPURLHandler())
got = [open(manager.get_local_path(f"{serve(content)}/model.pth"), "rb").read() for content in (b"first", b"second")]
print(got, asked)
assert (got, asked) == ([b"first", b"first"], [b"first"]), "iopath tells two hosts apart now"
PYTHON
