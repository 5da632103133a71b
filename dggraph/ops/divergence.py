"""How far one network's answers are from another's."""

from torch import Tensor
from torch.nn.functional import kl_div


def divergence(expected_BK: Tensor, actual_BK: Tensor) -> Tensor:
    """KL(expected || actual) of each instance, of what logits stand for.

    Args:
        expected_BK: logits of the static network.
        actual_BK: logits on the instances' paths; gets the gradient.

    Returns:
        (B,) in nats, 0 where both say the same.

    Example:
        >>> import torch
        >>> from dggraph.losses import divergence
        >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    return kl_div(
        actual_BK.log_softmax(1), expected_BK.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
