"""The end of the line: a web server that takes Alertmanager's notifications, as a chat or a pager would."""

from __future__ import annotations

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """Takes notifications at `url`; a context manager that stops the server. Each firing or resolved alert arrives in
    `alerts` as Alertmanager sends it: a dictionary with status, labels, annotations, startsAt.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.alerts: queue.Queue[dict[str, Any]] = queue.Queue()
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                for alert in json.loads(body)["alerts"]:
                    alerts.put(alert)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
