"""A server on this machine that speaks as much of the Hub's protocol as models need.

Downloads: HEAD and GET of resolve addresses, with ranges. Uploads: making a repository and committing files
to it, with the right token.
"""

import base64
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fork_cases import Forked

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_secret"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _find(self):
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w./-]+)", self.path.split("?")[0])
        if not match or match[1] not in {
            path.parent.parent.name + "/" + path.parent.name for path in self.server.root.glob("*/*/*")
        }:
            return None, "RepoNotFound"
        if match[2] not in ("main", "v1", COMMIT):
            return None, "RevisionNotFound"
        path = self.server.root / match[1] / match[3]
        return (path, "") if path.is_file() else (None, "EntryNotFound")

    def _answer(self, body):
        path, error = self._find()
        self.server.requests.append(
            (self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
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

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path, None, self.headers.get("Authorization")))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, status=401)
        if path == "/api/repos/create":
            values = json.loads(body)
            repository = "/".join(filter(None, (values.get("organization"), values["name"])))
            (self.server.root / repository).mkdir(parents=True, exist_ok=True)
            return self._json({"url": f"{self.server.endpoint}/{repository}", "name": repository})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = self.server.root / match[1] / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            return self._json(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"{self.server.endpoint}/{match[1]}/commit/{COMMIT}",
                }
            )
        return self._json({"error": f"no such address: {path}"}, status=404)

    def _json(self, values, status=200):
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)


@contextmanager
def hub(root: Path):
    """Serve root/org/name/file.

    Yields the server: `.endpoint`, `.requests`, and `.cut_after`, bytes of a file after which a connection
    breaks.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.root, server.requests, server.cut_after = root, [], None
    server.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def run_with_hub(code, *arguments, server, cache, cwd="."):
    """Run Python code in a fork that takes `server` for the Hub, or finds none.

    Returns:
        Its exit code and what it prints.
    """

    def work():
        os.chdir(cwd)
        os.environ.update(HF_ENDPOINT=server.endpoint if server else "http://127.0.0.1:9")
        os.environ.update(HF_HOME=str(cache), HF_HUB_DISABLE_XET="1")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            os.environ.pop(name, None)
        # The endpoint is read at import, by whoever comes first.
        for name in list(sys.modules):
            if name.partition(".")[0] in ("huggingface_hub", "mvar_models"):
                del sys.modules[name]
        sys.argv = ["-c", *map(str, arguments)]
        exec(code, {"__name__": "__main__"})

    with tempfile.TemporaryDirectory() as folder:
        process = Forked(work, Path(folder) / "printed.txt")
        printed = process.communicate()
    return process.returncode, printed
