"""Atomic writes of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils.sha import sha_fileobj


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a temporary file that replaces `path` at the end: readers see the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replaced(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return sha_fileobj(file).hex()


def json_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of settings as canonical JSON: equal settings have equal hashes."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
