"""Reads the file of a W&B run (`run-<id>.wandb`) without W&B's own reader, so that tests see what is on disk.

The file is a header of 7 bytes and then a LevelDB log: blocks of 32 KiB hold chunks of a header (CRC-32 of type and
data 4 bytes, length 2, type 1, little endian) and data. A record is one whole chunk or several, and is a protobuf
`Record`.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER, CHUNK_HEADER, BLOCK = 7, 7, 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbRun:
    """What a run has told W&B: the latest `config` and `summary`, and in `history` one dict for each time something
    was logged. `artifacts` has the local paths of their files: type, then path within the artifact.
    """

    finished: bool = False
    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    x_axes: dict[str, str] = field(default_factory=dict)  # of metrics that were given one
    artifacts: dict[str, list[dict[str, Path]]] = field(default_factory=dict)

    def values(self, metric: str) -> list[Any]:
        return [row[metric] for row in self.history if metric in row]


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log, joined from their chunks."""
    assert content[:4] == b":W&B", content[:FILE_HEADER]
    position, parts = FILE_HEADER, []
    while position + CHUNK_HEADER <= len(content):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < CHUNK_HEADER:
            position += left_in_block  # too small for a chunk: padding
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        assert kind in (WHOLE, FIRST, MIDDLE, LAST), f"chunk of kind {kind} at byte {position}"
        assert bool(parts) == (kind in (MIDDLE, LAST)), f"chunk of kind {kind} out of order at byte {position}"
        start = position + CHUNK_HEADER
        assert start + length <= len(content), "the last chunk is cut off"
        assert checksum == zlib.crc32(content[start - 1 : start + length]), f"damaged chunk at byte {position}"
        parts.append(content[start : start + length])
        position = start + length
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []
    assert not parts, "the last record is cut off"


def read(path: Path) -> WandbRun:
    run = WandbRun()
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group, run.project = record.run.display_name, record.run.run_group, record.run.project
            run.id, run.tags = record.run.run_id, list(record.run.tags)
            run.config |= items(record.run.config.update)
        elif kind == "config":
            run.config |= items(record.config.update)
        elif kind == "history":
            run.history.append(items(record.history.item))
        elif kind == "summary":
            run.summary |= items(record.summary.update)
        elif kind == "metric":
            run.x_axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            files = {file.path: Path(file.local_path) for file in record.artifact.manifest.contents}
            run.artifacts.setdefault(record.artifact.type, []).append(files)
        elif kind == "exit":
            run.finished = True
    return run


def items(updates: Any) -> dict[str, Any]:
    """Values by key; a nested key is joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}
