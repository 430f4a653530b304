#!/usr/bin/python3 -I
"""The images' health check: exit status 0 while the server is ready. It asks the metrics port, which has neither TLS nor keys."""

import http.client
import os

port = int(os.environ.get("VISIONPOOL_METRICS_PORT") or 8002)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
try:
    connection.request("GET", "/health/ready")
    answer = connection.getresponse()
except OSError as error:
    raise SystemExit(f"127.0.0.1:{port}: {error}") from None
if answer.status != 200:
    raise SystemExit(f"not ready: {answer.status} {answer.read(200)!r}")
