"""Networks as folders that can be shared: the archive, a model card, a picture and `config.json`.

The names follow the Hugging Face hub, whose package is needed for `push_to_hub` alone.
"""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dggraph.errors import DownloadError, MissingExtraError
from dggraph.system.files import part_of
from dggraph.views.model_card import MARK, PICTURE, CardFacts, TrainingResults, write_card
from dggraph.views.picture import picture_graph
from dggraph.views.svg_picture import write_svg

if TYPE_CHECKING:
    from dggraph.network.network import DynamicNetwork

CARD, CONFIG = "README.md", "config.json"


def save_pretrained(
    self: "DynamicNetwork",
    folder: str | os.PathLike[str],
    *,
    results: TrainingResults | None = None,
    license: str | None = None,
) -> None:
    """Write the archive with a model card to `folder`, atomically; `from_pretrained` loads it.

    A card there that a person wrote, or from which the line that says otherwise was removed, stays.

    Args:
        self: the network.
        folder: as for `save`.
        results: what `dggraph.training.read_results` read from the runs that trained it.
        license: an identifier that the hub knows, such as "apache-2.0".

    Raises:
        InputError: as for `save`.
        ArchiveError: as for `save`.

    Example:
        >>> import dggraph
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> net.save_pretrained("shared", license="apache-2.0")
        >>> dggraph.from_pretrained("shared").source
        'dggraph:resnet20_8'
    """
    from dggraph.network.archive import save  # which needs this class

    target = Path(os.path.realpath(os.fsdecode(folder)))
    notes = {
        CONFIG: json.dumps(_config(self), indent=1).encode(),
        PICTURE: write_svg(picture_graph(self.graph)).encode(),
    }
    if _is_ours(target):
        notes[CARD] = write_card(_facts(self, results, license)).encode()
    save(self, target, notes=notes)


def push_to_hub(
    self: "DynamicNetwork",
    repo_id: str,
    *,
    results: TrainingResults | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Save a network with dggraph",
) -> str:
    """Save the network to the Hugging Face hub, and return the address of the commit.

    Args:
        self: the network.
        repo_id: OWNER/NAME; created if it does not exist.
        results: as for `save_pretrained`.
        license: as for `save_pretrained`.
        private: whether a new repository is private; by default as the owner's settings say.
        token: by default the one that `hf auth login` stored.
        revision: the branch; by default the main one.
        commit_message: its first line.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.
        DownloadError: the hub refuses, or cannot be reached.
        InputError: as for `save`.
        ArchiveError: as for `save`.
    """
    hub = hub_package(f"pushing to {repo_id!r}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "network")
        save_pretrained(self, folder, results=results, license=license)
        try:
            api = hub.HfApi(token=token)
            found = api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=getattr(found, "repo_id", repo_id),
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        except Exception as error:  # of the package or of its connections, of no common kind
            raise DownloadError(
                f"the hub did not take {repo_id!r}: {type(error).__name__}: {str(error)[:300]}."
                " Check the name, the token and the connection; or use save_pretrained and upload"
                " the folder."
            ) from error
    return str(getattr(done, "commit_url", done))


def hub_package(purpose: str) -> Any:
    """Return the module `huggingface_hub`.

    Raises:
        MissingExtraError: it is not installed; the message begins with `purpose`.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs huggingface_hub: pip install 'dggraph[hub]'. Local folders do not."
        ) from error
    return huggingface_hub


def _is_ours(folder: Path) -> bool:
    """Whether the card in `folder` may be replaced."""
    try:
        return MARK in part_of(folder, CARD).read_text(errors="replace")
    except FileNotFoundError:
        return True


def _config(net: "DynamicNetwork") -> dict[str, Any]:
    """Return what the hub counts downloads by; `load` reads the manifest alone."""
    return {
        "library_name": "dggraph",
        "dggraph_version": version("dggraph"),
        "model": net.source,
        "router": net.blueprint.router,
        "gate": net.blueprint.gate,
        "input_shape": list(net.blueprint.input_shape),
    }


def _facts(
    net: "DynamicNetwork", results: TrainingResults | None, license: str | None
) -> CardFacts:
    graph = net.graph
    return CardFacts(
        name=graph.name,
        source=net.source,
        num_stages=len(graph.stages),
        num_blocks=graph.num_blocks,
        num_edges=graph.num_edges,
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        static_macs=net.macs_table.static,
        router=net.blueprint.router,
        gate=net.blueprint.gate,
        thresholds=tuple(
            float(buffer) for name, buffer in net.named_buffers() if name.endswith(".threshold")
        ),
        input_size=net.preprocess.input_size if net.preprocess else net.blueprint.input_shape,
        labels=net.labels,
        weights_origin=net.weights_origin,
        license=license,
        results=results,
    )
