"""A hub of one model, served on loopback."""

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def serving(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """The endpoint of a hub that has the model `name` with these files."""
    about = {"id": name, "sha": "b" * 40}
    about["siblings"] = [{"rfilename": file} for file in files]
    tree = [
        {"type": "file", "path": file, "size": len(body), "oid": file}
        for file, body in files.items()
    ]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = self.path.split("?")[0].rsplit("/", 1)[-1]
            if self.path.startswith("/api/"):
                answer = tree if "/tree/" in self.path else about
                body, kind = json.dumps(answer).encode(), "application/json"
            else:
                body, kind = files[file], "application/octet-stream"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", "b" * 40)
            self.send_header("ETag", f'"{file}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
