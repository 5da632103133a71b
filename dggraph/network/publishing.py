"""Networks as folders that can be shared: the archive, a model card, a picture and `config.json`.

The names follow the Hugging Face hub, whose package is needed for `push_to_hub` alone.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dggraph.errors import DownloadError, MissingExtraError
from dggraph.system.files import part_of
from dggraph.system.paths import locate
from dggraph.views.escaping import count, plural
from dggraph.views.model_card import (
    MARK,
    PICTURE,
    CardFacts,
    TrainingResults,
    for_markdown,
    write_card,
)
from dggraph.views.picture import picture_graph
from dggraph.views.svg_picture import write_svg

if TYPE_CHECKING:
    from dggraph.network.network import DynamicNetwork

CARD, CONFIG = "README.md", "config.json"


class Shareable(Protocol):
    """A network that writes itself with a card."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        results: TrainingResults | None = None,
        license: str | None = None,
    ) -> None:
        """Write the archive with a model card."""


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

    write_shared(
        folder,
        _facts(self, results, license),
        {
            "router": self.blueprint.router,
            "gate": self.blueprint.gate,
            "input_shape": list(self.blueprint.input_shape),
        },
        lambda target, notes: save(self, target, notes=notes),
        picture=write_svg(picture_graph(self.graph)),
    )


def push_to_hub(
    self: Shareable,
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
        self: the network, of either kind.
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
        self.save_pretrained(folder, results=results, license=license)
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


def write_shared(
    folder: str | os.PathLike[str],
    facts: CardFacts,
    config: Mapping[str, Any],
    write: Callable[[Path, Mapping[str, bytes]], None],
    *,
    picture: str | None = None,
) -> None:
    """Write an archive with its card.

    Args:
        folder: as for `save_pretrained`.
        facts: what the card says.
        config: what `config.json` says besides library, version and model.
        write: writes the archive and further files, by name, to a folder.
        picture: the SVG of the graph.
    """
    target = Path(os.path.realpath(locate(folder)))
    counted = {
        "library_name": "dggraph",
        "dggraph_version": version("dggraph"),
        "model": facts.source,
        **config,
    }
    notes = {CONFIG: json.dumps(counted, indent=1).encode()}
    if picture is not None:
        notes[PICTURE] = picture.encode()
    if _is_ours(target):
        notes[CARD] = write_card(facts).encode()
    write(target, notes)


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
    except (FileNotFoundError, NotADirectoryError):
        return True


def _facts(
    net: "DynamicNetwork", results: TrainingResults | None, license: str | None
) -> CardFacts:
    graph, blueprint = net.graph, net.blueprint
    thresholds = dict.fromkeys(
        float(buffer) for name, buffer in net.named_buffers() if name.endswith(".threshold")
    )
    return CardFacts(
        name=graph.name,
        form="as a dynamic graph",
        source=net.source,
        about=(
            f"Routers choose for every image which of {plural(graph.num_edges, 'edge')} between"
            " blocks are open, and blocks that none reaches are not run."
        ),
        has_picture=True,
        properties=(
            (
                "stages, routed blocks, candidate edges",
                f"{len(graph.stages)}, {graph.num_blocks}, {graph.num_edges}",
            ),
            ("MACs of the static network", count(net.macs_table.static)),
            ("router, gate", f"{for_markdown(blueprint.router)}, {for_markdown(blueprint.gate)}"),
            ("thresholds", ", ".join(f"{one:g}" for one in thresholds)),
        ),
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        input_size=net.preprocess.input_size if net.preprocess else blueprint.input_shape,
        use='print(dggraph.explain(net, "photo.jpg").predictions)',
        limits=(
            "The MACs ratio is that of the sparse executor, in eval mode without gradients. Fewer"
            " MACs are not always less time.",
            "Which path an image takes says what this network computes, not why a class is right.",
        ),
        labels=net.labels,
        weights_origin=net.weights_origin,
        license=license,
        results=results,
    )
