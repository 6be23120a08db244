"""What the tests of folding share: models whose norms do something, and a comparison."""

import torch
from torch import nn


def stirred(model):
    """Statistics and weights of norms that are not those of a norm that does nothing."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def size(model):
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def assert_equal(fused, model, x):
    want, got = model(x), fused(x)
    # Rounding: 1e-4 of the size of the outputs is what is promised.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


class Plain(nn.Module):
    """One convolution, one norm, and whatever `between` does."""

    def __init__(self, conv, norm, between=None):
        super().__init__()
        self.conv, self.norm, self.between = conv, norm, between or nn.Identity()

    def forward(self, x):
        return self.norm(self.between(self.conv(x)))
