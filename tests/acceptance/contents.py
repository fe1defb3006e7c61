"""What a folder holds, to be compared with what another one does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?")


def contents(path: Path) -> dict[str, bytes]:
    """Return each file of a folder by name, without times, durations, commands and logs; or one file."""
    if path.is_file():
        return {path.name: _comparable(path)}
    return {
        each.relative_to(path).as_posix(): _comparable(each)
        for each in sorted(path.rglob("*"))
        if each.is_file() and not each.name.endswith(".lock") and each.suffix != ".log"
    }


def _comparable(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.csv" and content.startswith(b"epoch"):
        rows = [_lasting(row) for row in csv.DictReader(io.StringIO(content.decode()))]
        return repr(rows).encode()
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)
        state["history"] = [_lasting(row) for row in state.get("history", [])]
        return repr(_plain(state)).encode()
    if path.name == "environment.json":
        return json.dumps({**json.loads(content), "started": "", "command": ""}).encode()
    if path.parent.name == "outcomes":
        return json.dumps({**json.loads(content), "seconds": 0, "memory": 0}).encode()
    if path.name == "protocol.json":  # a claim is seen where a run finished before the study's last call
        content = content.replace(b'"seen":true', b'"seen":false').replace(b'"seen": true', b'"seen": false')
    if path.name == "settings.sha256":  # metrics.csv holds durations
        return b"".join(line for line in content.splitlines(True) if not line.endswith(b"  metrics.csv\n"))
    if path.suffix in (".json", ".html"):
        return _TIME.sub(b"TIME", content)
    return content


def _lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
