import math

import pytest
import torch
from torch import nn

from efficient_vits.training.health import diagnose, gradient_norms


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_the_first_module_is_named_with_its_input():
    model = Two()
    with torch.no_grad():
        model.blocks[0].bias.fill_(math.nan)
    text = diagnose(model, lambda: model(torch.ones(2, 3)).sum())
    assert "first output that is not finite: blocks.0 (Linear), largest input" in text
    assert "parameters that are not finite: blocks.0.bias" in text
    assert not model._forward_hooks
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_alone_that_is_not_finite():
    model = Two()
    text = diagnose(model, lambda: model(torch.ones(2, 3)).sum() * math.inf)
    assert "every module's output is finite, the loss alone is not" in text


def test_gradient_norms_of_blocks():
    model = Two()
    model(torch.ones(2, 3)).sum().backward()
    norms = gradient_norms(model)
    assert list(norms) == ["stem", "blocks.0", "blocks.1"]
    grads = [p.grad.flatten() for p in model.blocks[1].parameters()]
    assert norms["blocks.1"] == pytest.approx(float(torch.cat(grads).norm()))
