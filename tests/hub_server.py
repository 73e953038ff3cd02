"""A server on this machine that speaks as much of the Hub's file protocol as downloads need: HEAD and GET of resolve addresses, with ranges."""

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _find(self):
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w./-]+)", self.path.split("?")[0])
        if not match or match[1] not in {path.parent.parent.name + "/" + path.parent.name for path in self.server.root.glob("*/*/*")}:
            return None, "RepoNotFound"
        if match[2] not in ("main", "v1", COMMIT):
            return None, "RevisionNotFound"
        path = self.server.root / match[1] / match[3]
        return (path, "") if path.is_file() else (None, "EntryNotFound")

    def _answer(self, body):
        path, error = self._find()
        self.server.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path is None:
            self.send_response(404)
            self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        last = int(asked[2]) if asked and asked[2] else size - 1
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{hashlib.sha256(f"{path.name}{size}".encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return
        cut = self.server.cut_after
        with path.open("rb") as file:
            file.seek(first)
            left = last + 1 - first
            while left:
                chunk = file.read(min(left, 1 << 20))
                if cut is not None and first + (last + 1 - first - left) + len(chunk) > cut:
                    self.wfile.write(chunk[: max(0, cut - (last + 1 - left))])
                    self.wfile.flush()
                    self.close_connection = True
                    self.server.cut_after = None
                    return
                self.wfile.write(chunk)
                left -= len(chunk)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)


@contextmanager
def hub(root: Path):
    """Serve root/org/name/file; yields the server: `.endpoint`, `.requests`, and `.cut_after`, bytes of a file after which a connection breaks."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.root, server.requests, server.cut_after = root, [], None
    server.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
