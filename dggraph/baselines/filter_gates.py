"""GaterNet (arXiv 1811.11205): a second network looks at the image and selects filters.

Shape suffixes: B images, C channels, F filters of all gated convolutions.
"""

import torch
from torch import Tensor, fx, nn

from dggraph.baselines.draft import Draft, finish, open_draft
from dggraph.baselines.network import BaselineNetwork, Values
from dggraph.baselines.options import above_zero, at_least
from dggraph.compiler.regions import Region
from dggraph.models.registry import LoadedModel
from dggraph.network.norms import NORMS

OPEN_LOGIT = 2.0
"""Logit of each gate at the start; noise closes it for 2 % of the images in training."""


def hash_gates(logits: Tensor, *, training: bool) -> Tensor:
    """Return binary gates by improved semantic hashing (arXiv 1801.09797).

    In evaluation a gate is 1 where its logit is above 0. In training noise is added, and a half of
    the images, drawn anew, get max(0, min(1, 1.2 sigmoid(g) - 0.1)) instead of 1[g > 0]; the
    gradient is that of the former for all.

    Args:
        logits: (B, F).
        training: Whether the network trains.
    """
    if not training:
        return (logits > 0).to(logits.dtype)
    noisy = logits + torch.randn_like(logits)
    soft = (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1)
    hard = (noisy > 0).to(logits.dtype)
    is_hard = torch.rand((len(logits), 1), device=logits.device) < 0.5
    return torch.where(is_hard, soft + (hard - soft).detach(), soft)


class Gater(nn.Module):
    """A small network from images to one gate per filter, through a bottleneck.

    Args:
        num_image_channels: Channels of the images.
        num_filters: F.
        width: Channels of its first convolution; each of the others has twice as many.
        bottleneck: Width of the bottleneck, with a norm and a ReLU.
    """

    def __init__(
        self, num_image_channels: int, num_filters: int, *, width: int, bottleneck: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        num_in = num_image_channels
        for num_out in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(num_in, num_out, 3, 2, 1, bias=False),
                nn.BatchNorm2d(num_out),
                nn.ReLU(),
            ]
            num_in = num_out
        self.features = nn.Sequential(*layers)
        self.bottleneck = nn.Linear(num_in, bottleneck, bias=False)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.expand = nn.Linear(bottleneck, num_filters)
        nn.init.zeros_(self.expand.weight)
        nn.init.constant_(self.expand.bias, OPEN_LOGIT)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to gates (B, F)."""
        features_BC = self.features(images).mean((2, 3))
        logits_BF: Tensor = self.expand(self.norm(self.bottleneck(features_BC)).relu())
        return hash_gates(logits_BF, training=self.training)


class GaterNetwork(BaselineNetwork):
    """The network of `gaternet`."""

    def auxiliary_loss(self, values: Values) -> Tensor:
        """Return `sparsity` times the mean of all gates, which is their L1 norm over their number.

        Args:
            values: `gates` (B, F), the gates of all filters.
        """
        return float(self.options["sparsity"]) * values["gates"].mean()


def scale_filters(features: Tensor, gates_BF: Tensor, first: int, last: int) -> Tensor:
    """Multiply features (B, C, H, W) by the gates of their filters, from `first` to `last`."""
    return features * gates_BF[:, first:last, None, None]


def gaternet(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    width: int = 16,
    bottleneck: int = 64,
    sparsity: float = 0.1,
) -> BaselineNetwork:
    """Select the filters of each block's convolutions per image, by a gater (arXiv 1811.11205).

    The gater is a small convolutional network on the image, whose size is our choice (the paper
    takes a ResNet). A closed filter's output, behind its norm, is multiplied by 0: it is masked as
    in the paper, not skipped, so that the MACs do not fall. All gates start open, so the network
    starts as the backbone to the bit; in training noise closes some.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        width: Channels of the gater's first convolution.
        bottleneck: Width of its bottleneck.
        sparsity: Factor of the mean gate in the loss.

    Raises:
        InputError: An option or the model is not valid, or the model has no convolutions.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.baselines.gaternet("dggraph:resnet20_8", bottleneck=16)
        >>> output, values = net(torch.rand(2, 3, 32, 32), return_values=True)
        >>> values["gates"].shape, float(values["gates"].detach().mean())
        (torch.Size([2, 384]), 1.0)
    """
    at_least("width", width, 1)
    at_least("bottleneck", bottleneck, 1)
    above_zero("sparsity", sparsity)
    draft = open_draft(model, example_input, method="gaternet")
    ends = [one for block, _ in draft.blocks() for one in _filters(draft, block)]
    sizes = [draft.flow.shape(end)[0] for _, end in ends]
    gater = Gater(draft.example.shape[1], sum(sizes), width=width, bottleneck=bottleneck)
    images = next(fx_node for fx_node in draft.graph.nodes if fx_node.op == "placeholder")
    with draft.graph.inserting_after(images):
        gates = draft.call("gater", gater, (images,))
    first = 0
    for (path, end), size in zip(ends, sizes, strict=True):
        own = draft.by_name[end.name]
        with draft.graph.inserting_after(own):
            scaled = draft.graph.call_function(scale_filters, (own, gates, first, first + size))
        draft.redirect(own, scaled)
        draft.changed.append(path)
        first += size
    draft.values["gates"] = gates
    return finish(
        draft,
        method="gaternet",
        options={"width": width, "bottleneck": bottleneck, "sparsity": sparsity},
        exactness="to the bit",
        reason="every gate starts open",
        kind=GaterNetwork,
    )


def _filters(draft: Draft, block: Region) -> list[tuple[str, fx.Node]]:
    """Return the path of each convolution in `block`, and the node behind it and its norm."""
    found: list[tuple[str, fx.Node]] = []
    for name in block.fx_nodes:
        fx_node = draft.flow.by_name[name]
        module = _module(draft, fx_node)
        if not isinstance(module, nn.Conv2d):
            continue
        readers = draft.flow.readers(fx_node)
        is_normed = len(readers) == 1 and isinstance(_module(draft, readers[0]), NORMS)
        found.append((str(fx_node.target), readers[0] if is_normed else fx_node))
    return found


def _module(draft: Draft, fx_node: fx.Node) -> nn.Module | None:
    if fx_node.op != "call_module":
        return None
    return draft.backbone.get_submodule(str(fx_node.target))
