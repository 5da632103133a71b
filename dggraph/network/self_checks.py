"""Self-checks of a new network against its backbone.

All of them run after a conversion, and those of the forward pass after an archive was loaded.
"""

from torch import Tensor, nn

from dggraph.network.network import DynamicNetwork
from dggraph.network.skipping_checks import check_skipping_
from dggraph.network.static_checks import Init, check_forward
from dggraph.network.training_checks import check_autocast, check_gradients


def check_converted_(
    net: DynamicNetwork,
    backbone: nn.Module,
    example: Tensor,
    init: Init,
) -> float:
    """Compare outputs, buffers, gradients, autocast and executors with those of the backbone.

    Args:
        net: In eval mode. Stages that cannot skip are marked as dense in `net.plan`.
        backbone: A copy, which is put into eval mode.
        example: (1 or more, C, H, W).
        init: How routers must start.

    Returns:
        max |backbone - network| on the static path.

    Raises:
        LoweringError: The network differs, or equality cannot be proved.
        InputError: The backbone cannot run, or routers do not start as `init` requires.
    """
    backbone.eval()
    difference, images = check_forward(net, backbone, example, init)
    check_gradients(net, backbone, images)
    check_autocast(net, backbone, images[:1])
    check_skipping_(net, images)
    net.forget_program()  # it was inlined around the hooks of these checks
    return difference


def check_loaded_(net: DynamicNetwork, backbone: nn.Module, example: Tensor) -> float:
    """Compare outputs, buffers and executors with those of the backbone; routers may be trained.

    Returns:
        max |backbone - network| on the static path.

    Raises:
        LoweringError: As for `check_converted_`.
        InputError: As for `check_converted_`.
    """
    backbone.eval()
    difference, images = check_forward(net, backbone, example)
    check_skipping_(net, images)
    net.forget_program()  # it was inlined around the hooks of these checks
    return difference
