"""One call for one image: what the network says of it, and the path on which it came there,
drawn.
"""

import os
from dataclasses import dataclass

from dggraph.evaluation.recording import ClassScore, make_predictor
from dggraph.graph.ir import ActivatedPath
from dggraph.models.preprocessing import Picturable, as_image
from dggraph.network.network import DynamicNetwork
from dggraph.views.drawing import draw
from dggraph.views.picture import Picture, picture_path
from dggraph.views.svg_picture import write_svg


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What `explain` found. Notebooks show its picture.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> found = dggraph.explain(dggraph.convert("dggraph:resnet20_8"), Image.new("RGB", (40, 40)))
        >>> len(found.predictions)
        5
    """

    predictions: tuple[ClassScore, ...]
    """The most probable classes first, up to five; empty where the network is not a classifier."""
    path: ActivatedPath
    """Weights of all edges, MACs, margin."""
    macs_ratio: float
    """MACs of the path over those of the static backbone."""
    picture: Picture
    """The path beside the image."""

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the picture in the format of the file's suffix: .svg, .png, .pdf, .dot, .mmd or
        .json.

        Raises:
            InputError: another suffix.
            MissingExtraError: the format needs a drawing program that is not here.
        """
        draw(self.picture, file)

    def __repr__(self) -> str:
        said = (
            f"{self.predictions[0].label!r} {self.predictions[0].probability:.2f}, "
            if self.predictions
            else ""
        )
        return f"<Explanation: {said}MACs ratio {self.macs_ratio:.3f}>"

    def _repr_html_(self) -> str:
        return write_svg(self.picture)


def explain(net: DynamicNetwork, image: Picturable) -> Explanation:
    """Run one image through `net` and draw the path that it takes.

    Args:
        net: a converted network that knows how images become its input, as those built by name do;
            its mode is restored.
        image: a path, a PIL image, or an array (H, W, 3) of uint8.

    Raises:
        InputError: no image; or the network does not say how images become its input, or has no
            stages.
        GateError: an edge weight is NaN.

    Example:
        >>> import dggraph, numpy
        >>> net = dggraph.convert("resnet18")
        >>> found = dggraph.explain(net, numpy.zeros((64, 64, 3), dtype=numpy.uint8))
        >>> found.save("path.svg")
        >>> f"{found.macs_ratio:.2f}"
        '1.00'
    """
    predictor, opened = make_predictor(net), as_image(image)
    found = predictor.predict(opened)
    ratio = found.path.macs / net.macs_table.static
    best = [f"{one.label} {one.probability:.2f}" for one in found.classes[:1]]
    picture = picture_path(
        net.graph,
        found.path,
        title=os.path.basename(image) if isinstance(image, str | os.PathLike) else net.graph.name,
        facts=[" \N{MIDDLE DOT} ".join([*best, f"{ratio:.3f} of the static network's MACs"])],
        thumbnail=opened,
    )
    return Explanation(
        predictions=found.classes, path=found.path, macs_ratio=ratio, picture=picture
    )
