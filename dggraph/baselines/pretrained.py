"""Networks by the place where they are: a folder, a name in this package, a repository of the hub.

Nothing that a place holds is run: it is an archive, as `load` reads them.
"""

import os
import re
from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from dggraph.baselines.archive import load
from dggraph.baselines.network import BaselineNetwork
from dggraph.errors import DownloadError, InputError
from dggraph.network.manifest import GRAPH, MANIFEST, WEIGHTS
from dggraph.network.network import DynamicNetwork
from dggraph.network.publishing import hub_package
from dggraph.system.paths import locate

SHIPPED = ("fashion_mnist", "object_photos")
"""Names of the trained networks in this package."""
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def from_pretrained(
    name: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> DynamicNetwork | BaselineNetwork:
    """Load a network from a folder, from this package, or from the Hugging Face hub.

    Args:
        name: a folder that `save_pretrained` or `save` wrote; else "fashion_mnist", the network of
            `dggraph demo`, or "object_photos", one for objects on photographs of 64 pixels; else
            OWNER/NAME on the hub, which needs `pip install 'dggraph[hub]'`.
        model: as for `load`.
        revision: branch, tag or commit on the hub.
        token: for the hub; by default the one that `hf auth login` stored.

    Raises:
        InputError: `name` is none of these.
        MissingExtraError: it is OWNER/NAME, and `huggingface_hub` is not installed.
        DownloadError: the hub has no such repository, or cannot be reached.
        ArchiveError: as for `load`.

    Example:
        >>> import dggraph
        >>> dggraph.from_pretrained("fashion_mnist").labels[0]
        'T-shirt/top'
    """
    place = locate(name)
    text = os.fsdecode(name)
    if text and os.path.lexists(place):  # as a path, no text is the current folder
        return load(place, model)
    if text in SHIPPED:
        with as_file(files("dggraph") / "assets" / text) as folder:
            return load(folder, model)
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(text):
        raise InputError(
            f"there is no folder {text!r}, and it is neither a network of this package"
            f" ({', '.join(SHIPPED)}) nor OWNER/NAME on the hub. Check the path."
        )
    return load(_download(text, revision, token), model)


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    hub = hub_package(f"there is no folder {repo_id!r}, and loading it from the hub")
    try:
        found = hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            library_name="dggraph",
            allow_patterns=[GRAPH, MANIFEST, WEIGHTS],
        )
    except Exception as error:  # of the package or of its connections, of no common kind
        raise DownloadError(
            f"there is no folder {repo_id!r}, and the hub did not give it: {type(error).__name__}:"
            f" {str(error)[:300]}. Check the name, the revision and the connection."
        ) from error
    return Path(found)
