"""The linear layer."""

from torch import Tensor, nn

from ..ops import linear


class Linear(nn.Linear):
    """As ``nn.Linear``, on a processor faster (see ``msdetr.ops.linear``)."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """[..., in_features] -> [..., out_features]; relu: negative outputs become 0."""
        return linear(x, self.weight, self.bias, relu)
