"""The divergence between the predictions of two networks."""

from torch import Tensor
from torch.nn.functional import kl_div


def divergence(expected_BK: Tensor, actual_BK: Tensor) -> Tensor:
    """Return KL(expected || actual) of each instance, between the softmax of two sets of logits.

    Args:
        expected_BK: logits of the static network.
        actual_BK: logits on the instances' paths; receives the gradient.

    Returns:
        (B,) in nats; 0 where both distributions agree.

    Example:
        >>> import torch
        >>> from dggraph.losses import divergence
        >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    return kl_div(
        actual_BK.log_softmax(1), expected_BK.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
