"""The state of an interrupted collection: one file, replaced as a whole, sealed by a digest, and
tied to what it was collected from.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dggraph.errors import InputError
from dggraph.system.files import write_whole


def write_state(file: Path, identity: Mapping[str, str], document: Mapping[str, Any]) -> None:
    """Write `document` to `file`, all of it or nothing: a temporary file beside it, synced, then
    renamed.

    Args:
        file: where.
        identity: what the state belongs to, by name.
        document: what `json` can write; numbers come back exactly.
    """
    content = json.dumps({"identity": dict(identity), "document": document}).encode()
    write_whole(file, _digest(content).encode() + b"\n" + content)


def read_state(file: Path, identity: Mapping[str, str]) -> Any:
    """The document in `file`, or None where there is no such file.

    Raises:
        InputError: the file is damaged, or belongs to something else than `identity`; names what
            differs.
    """
    try:
        digest, _, content = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"cannot read the state {str(file)!r}: {error.strerror or error}. Delete it to begin"
            " anew."
        ) from error
    if digest.decode(errors="replace") != _digest(content):
        raise InputError(f"the state {str(file)!r} is damaged. Delete it to begin anew.")
    found = json.loads(content)
    different = [name for name, value in identity.items() if found["identity"].get(name) != value]
    if different:
        raise InputError(
            f"the state {str(file)!r} is of an interrupted run with other {', '.join(different)}. "
            "Run that one to its end, delete the state to begin anew, or choose another output."
        )
    return found["document"]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
