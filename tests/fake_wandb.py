"""A W&B server of one sweep on the loopback, enough for a real `wandb agent`; it can be told to stop, or to hang."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENTITY, PROJECT, SWEEP = "somebody", "sparsekit", "abcd1234"
USER = {
    "id": "VXNlcg==", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "a@b.c", "flags": "{}",
    "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}, "deletedAt": None,
}  # fmt: skip


class FakeWandb(ThreadingHTTPServer):
    """Gives the agent one run after another.

    Args:
        sweep: The sweep's YAML.
        runs: Ids of the runs that the agent is to start; with values, where it is to send any.

    Attributes:
        stop: Set it to have the agent stop whatever it runs.
        hang: Set it to leave every request unanswered from now on.
        started: Ids of the runs that were handed out.
    """

    daemon_threads = True

    def __init__(self, sweep: str, runs: list[str] | dict[str, dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sweep, self.waiting = sweep, list(runs)
        self.stop, self.hang = threading.Event(), threading.Event()
        self.started: list[str] = []
        self.values = runs if isinstance(runs, dict) else {}
        self._stopped: set[str] = set()

    def __enter__(self) -> FakeWandb:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """For processes that are to know this server, and no other."""
        mine = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        folders = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
        return (
            mine
            | folders
            | {
                "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}",
                "WANDB_API_KEY": "0" * 40,
                "WANDB_DIR": str(home),
                "WANDB_ERROR_REPORTING": "false",
                "HOME": str(home),
                "NO_PROXY": "127.0.0.1",
                "OMP_NUM_THREADS": "1",
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            }
        )

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL request."""
        if "agentHeartbeat" in query:
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self._commands(variables))}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "sweep(" in query:
            sweep = {
                "id": "U3dlZXA=", "name": SWEEP, "state": "RUNNING", "method": "grid", "config": self.sweep,
                "createdAt": "2024-01-01T00:00:00", "heartbeatAt": None, "description": None, "bestLoss": None,
                "earlyStopJobRunning": False, "user": None, "controller": None, "scheduler": None,
                "runs": {"edges": []},
            }  # fmt: skip
            return {"project": {"sweep": sweep}}
        if "upsertBucket" in query:
            name = variables.get("name") or "run"
            project = {"id": "UA==", "name": PROJECT, "entity": {"id": "RQ==", "name": ENTITY}}
            bucket = {
                "id": "UnVu", "name": name, "displayName": name, "description": None, "config": "{}", "sweepName": None,
                "historyLineCount": 0, "project": project,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "viewer" in query:
            return {"viewer": USER}
        if "serverInfo" in query:
            versions = {"max_cli_version": "99.0.0"}
            return {"serverInfo": {"features": [], "cliVersionInfo": versions, "latestLocalVersionInfo": None}}
        return {}

    def _commands(self, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
        running = json.loads(variables.get("runState") or "{}")
        if running:
            told = [run for run in running if self.stop.is_set() and run not in self._stopped]
            self._stopped |= set(told)
            return [{"type": "stop", "run_id": run} for run in told]
        if self.waiting:
            self.started.append(self.waiting.pop(0))
            values = self.values.get(self.started[-1], {})
            sent = {key: {"value": value} for key, value in values.items()}
            return [{"type": "run", "run_id": self.started[-1], "program": "sparsekit", "args": sent}]
        return [{"type": "exit"}]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWandb

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.hang.is_set():
            threading.Event().wait(300)
            return
        try:
            request = json.loads(body)
        except ValueError:
            request = {}
        data = self.server.answer(request.get("query", ""), request.get("variables") or {})
        self._send(200, json.dumps({"data": data}).encode())

    def do_GET(self) -> None:
        self._send(404, b"")

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""
