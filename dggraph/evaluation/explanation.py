"""The prediction for one image and a picture of its path, in one call."""

import os
from dataclasses import dataclass

from dggraph.evaluation.recording import ClassScore, make_predictor
from dggraph.graph.ir import ActivatedPath
from dggraph.models.origins import MARK, RANDOM
from dggraph.models.preprocessing import Picturable, as_image
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.views.drawing import draw
from dggraph.views.picture import Picture, picture_path
from dggraph.views.svg_picture import show_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The result of `explain`. Notebooks show its picture.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> found = dggraph.explain(net, Image.new("RGB", (40, 40)))
        >>> len(found.predictions)
        5
    """

    predictions: tuple[ClassScore, ...]
    """Up to five classes, the most probable first; empty if the network is not a classifier."""
    path: ActivatedPath
    """Weights of all edges, MACs and margin."""
    macs_ratio: float
    """MACs of the path divided by those of the static backbone."""
    picture: Picture
    """The path next to the image."""
    weights_origin: str
    """Where the network's weights come from; of `random` ones nothing here means anything."""

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the picture in the format of the suffix: .svg, .png, .pdf, .dot, .mmd or .json.

        Raises:
            InputError: the suffix is another one.
            MissingExtraError: the format needs a drawing program that is not installed.
        """
        draw(self.picture, file)

    def __repr__(self) -> str:
        best = (
            f"{self.predictions[0].label!r} {self.predictions[0].probability:.2f}, "
            if self.predictions
            else ""
        )
        mark = f", {MARK}" if self.weights_origin == RANDOM else ""
        return f"<Explanation: {best}MACs ratio {self.macs_ratio:.3f}{mark}>"

    def _repr_html_(self) -> str:
        return show_picture(self.picture)


def explain(net: DynamicNetwork, image: Picturable) -> Explanation:
    """Run one image through `net` and draw the path that it takes.

    Args:
        net: a converted network with preprocessing, as those built from a name have; its mode is
            restored.
        image: a path, a PIL image, a uint8 array (H, W, 3), or a tensor (3, H, W) of uint8 or of
            floats from 0 to 1.

    Raises:
        InputError: `image` cannot be read as an image; or the network does not say how images
            become its input, or has no stages.
        GateError: an edge weight is NaN.

    Example:
        >>> import dggraph, numpy
        >>> net = dggraph.convert("resnet18")
        >>> found = dggraph.explain(net, numpy.zeros((64, 64, 3), dtype=numpy.uint8))
        >>> found.save("path.svg")
        >>> f"{found.macs_ratio:.2f}"
        '1.00'
    """
    require_converted(net, "explain")
    predictor, opened, origin = make_predictor(net), as_image(image), net.weights_origin
    found = predictor.predict(opened)
    ratio = found.path.macs / net.macs_table.static
    best = [f"{one.label} {one.probability:.2f}" for one in found.classes[:1]]
    picture = picture_path(
        net.graph,
        found.path,
        title=os.path.basename(image) if isinstance(image, str | os.PathLike) else net.graph.name,
        facts=[
            " \N{MIDDLE DOT} ".join([*best, f"{ratio:.3f} of the static network's MACs"]),
            *([MARK] if origin == RANDOM else []),
        ],
        thumbnail=opened,
    )
    return Explanation(
        predictions=found.classes,
        path=found.path,
        macs_ratio=ratio,
        picture=picture,
        weights_origin=origin,
    )
