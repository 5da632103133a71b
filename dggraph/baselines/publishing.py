"""Networks of other methods as folders that can be shared, as `dggraph.network.publishing` does."""

import os
from typing import TYPE_CHECKING

from dggraph.network.publishing import write_shared
from dggraph.views.escaping import plural
from dggraph.views.model_card import CardFacts, TrainingResults, for_markdown

if TYPE_CHECKING:
    from dggraph.baselines.network import BaselineNetwork


def save_pretrained(
    self: "BaselineNetwork",
    folder: str | os.PathLike[str],
    *,
    results: TrainingResults | None = None,
    license: str | None = None,
) -> None:
    """Write the archive with a model card to `folder`, atomically; `from_pretrained` loads it.

    Arguments and errors are those of `DynamicNetwork.save_pretrained`. There is no picture, since
    there is no graph.

    Example:
        >>> import dggraph
        >>> net = dggraph.baselines.squeeze_excitation("dggraph:resnet20_8", reduction=4)
        >>> net.save_pretrained("shared")
        >>> dggraph.from_pretrained("shared").method
        'squeeze_excitation'
    """
    from dggraph.baselines.archive import save  # which needs this class

    write_shared(
        folder,
        _facts(self, results, license),
        {
            "method": self.method,
            "options": dict(self.options),
            "input_shape": list(self.input_shape),
        },
        lambda target, notes: save(self, target, notes=notes),
    )


def _facts(
    net: "BaselineNetwork", results: TrainingResults | None, license: str | None
) -> CardFacts:
    options = ", ".join(f"{name}={value}" for name, value in net.options.items())
    report, size = net.report, net.preprocess.input_size if net.preprocess else net.input_shape
    return CardFacts(
        name=net.name,
        form=f"with {net.method}",
        source=net.source,
        about=(
            f"The method changed {plural(len(report.changed), 'module')} of the backbone. It is not"
            " a dynamic graph, but a method to compare one with."
        ),
        has_picture=False,
        properties=(
            ("method", for_markdown(f"{net.method}({options})")),
            ("starts as the backbone", for_markdown(f"{report.exactness}, {report.reason}")),
            ("added parameters", f"{report.num_added_parameters:,}"),
        ),
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        input_size=size,
        use=(
            'print(net(net.preprocess("photo.jpg")).argmax(1))'
            if net.preprocess
            else f"print(net(torch.rand(1, {', '.join(map(str, size))})).shape)  # import torch"
        ),
        limits=(),
        labels=net.labels,
        weights_origin=net.weights_origin,
        license=license,
        results=results,
    )
