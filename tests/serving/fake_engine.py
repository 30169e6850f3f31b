"""Stands in for `vllm serve`: lists a model, answers slow requests, logs and crashes when told to, and drains on SIGTERM as vLLM does.

The first argument says how it behaves: `serve`, `fail` (each request), `hang` (SIGTERM is ignored), `load` (for ever), `die` (as vLLM does
when it cannot start).
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

SLOW_SECONDS = 1.0
POSTED = []


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        POSTED.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(500 if sys.argv[1] == "fail" else 200, {})

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": option("--served-model-name")}]})
        elif self.path == "/posted":
            self.answer(200, POSTED)
        elif self.path.startswith("/log/"):
            print(unquote(self.path.removeprefix("/log/")), flush=True)
            self.answer(200, {})
        elif self.path == "/crash":
            os._exit(1)
        elif self.path == "/environment":
            self.answer(200, {"argv": sys.argv, "env": dict(os.environ)})
        else:
            time.sleep(SLOW_SECONDS)
            self.answer(200, {"finished": True})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve():
    server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)
    # server_close() waits for the requests in flight.
    server.daemon_threads = False
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    server.server_close()


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve_forever = threading.Event()
    serve_forever.wait()


def load():
    threading.Event().wait()


def die():
    prefix = "(EngineCore pid=7) ERROR 11-22 16:31:47 [core.py:1510] "
    print(prefix + "Traceback (most recent call last):", file=sys.stderr)
    print(prefix + "ValueError: The model's sequence length is too short", file=sys.stderr)
    print("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    {"serve": serve, "fail": serve, "hang": hang, "load": load, "die": die}[sys.argv[1]]()
