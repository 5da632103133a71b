"""Where weights come from, in a few words: what a prediction is worth depends on it."""

import os
from pathlib import Path

from dggraph.system.files import sha256_of

RANDOM = "random"
"""As the builder drew them: nobody has trained them."""
GIVEN = "given by the caller"
"""The caller built the module, or has changed its weights since."""
TRAINED = "trained by dggraph"
UNKNOWN = "unknown"
"""The archive does not say it, as older ones do not."""
MARK = "random weights: the answer and the path mean nothing"
"""What stands beside whatever a network with random weights says of an image."""
WARNING = (
    "The weights of this network are random, so its answers and paths mean nothing. Train it, or"
    " load trained weights."
)


def checkpoint_origin(file: str | os.PathLike[str]) -> str:
    """A checkpoint's name with the beginning of its SHA-256."""
    place = Path(file)
    return f"checkpoint {place.name[:200]}, SHA-256 {sha256_of(place)[:12]}"
