"""The state of an interrupted collection: one file with a digest and the identity of its inputs."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dggraph.errors import InputError
from dggraph.system.files import write_whole


def write_state(file: Path, identity: Mapping[str, str], document: Mapping[str, Any]) -> None:
    """Write `document` to `file` atomically: a temporary file next to it, synced, then renamed.

    Args:
        file: the path to write.
        identity: facts about the inputs that the state belongs to, by name.
        document: a document that `json` can write; numbers are restored exactly.
    """
    content = json.dumps({"identity": dict(identity), "document": document}).encode()
    write_whole(file, _digest(content).encode() + b"\n" + content)


def read_state(file: Path, identity: Mapping[str, str]) -> Any:
    """Return the document in `file`, or None if there is no such file.

    Raises:
        InputError: the file cannot be read, is damaged, or belongs to another `identity`; names
            what differs.
    """
    try:
        digest, _, content = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read the state {str(file)!r}: {error.strerror or error}. Delete it to start"
            " over."
        ) from error
    if digest.decode(errors="replace") != _digest(content):
        raise InputError(
            f"the state {str(file)!r} is damaged: its digest does not match. Delete it to start"
            " over."
        )
    found = json.loads(content)
    different = [name for name, value in identity.items() if found["identity"].get(name) != value]
    if different:
        raise InputError(
            f"the state {str(file)!r} is of an interrupted run with other {', '.join(different)}."
            " Finish that run, delete the state to start over, or choose another output."
        )
    return found["document"]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
