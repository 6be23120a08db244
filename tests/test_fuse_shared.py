"""Folding leaves alone what somebody else reads, and folds what is run twice once."""

import pytest
import torch
import torch.nn.functional as F
from folding import Plain, assert_equal, norms, stirred
from timm.layers import ConvNormAct
from torch import nn

from efficient_vits import fuse, fused_modules


class Residual(Plain):
    """The convolution's output is read twice."""

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class Twice(Plain):
    """The convolution is applied twice, once without the norm."""

    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


class Functional(Plain):
    """A module's weights are used without calling it."""

    def forward(self, x):
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)


class Statistics(Plain):
    """So are the statistics of a norm."""

    def forward(self, x):
        return self.norm(self.conv(x)) + self.norm.running_mean.sum()


class Optional(Plain):
    """Who calls it may leave the norm out."""

    def forward(self, x, normed: bool = True):
        y = self.conv(x)
        return self.norm(y) if normed else y


class Shaped(Plain):
    """The way depends on the image, which tracing cannot see."""

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) if x.sum() > 0 else y


class Reaching(nn.Module):
    """A convolution inside another module is called past that module."""

    def __init__(self, conv, norm):
        super().__init__()
        self.inner = Plain(conv, norm)

    def forward(self, x):
        return self.inner(x) + self.inner.conv(x)


class Shared(nn.Module):
    """One convolution in two places, each with a norm of its own."""

    def __init__(self, conv, norm):
        super().__init__()
        self.a, self.b = nn.Sequential(conv, norm), nn.Sequential(conv, nn.BatchNorm2d(4))

    def forward(self, x):
        return self.a(x) + self.b(x)


class SharedNorm(nn.Module):
    """One norm after two convolutions."""

    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.other, self.norm = conv, nn.Conv2d(4, 4, 1), norm

    def forward(self, x):
        return self.norm(self.other(self.norm(self.conv(x))))


@pytest.mark.parametrize(
    "cls", [Residual, Twice, Functional, Statistics, Optional, Shaped, Reaching, Shared, SharedNorm]
)
def test_what_somebody_else_reads_stays(cls):
    model = stirred(cls(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    fused = fuse(model)
    for x in (torch.randn(2, 4, 5, 5), torch.rand(2, 4, 5, 5), -torch.rand(2, 4, 5, 5)):
        assert_equal(fused, model, x)
    assert fused_modules(fused) == ()
    # The same two alone do fold.
    pair = stirred(Plain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert fused_modules(fuse(pair)) == ("norm",)


def test_two_convolutions_with_one_weight_part():
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    model = stirred(nn.Sequential(first, nn.BatchNorm2d(4), second, nn.BatchNorm2d(4)))
    fused = fuse(model)
    assert_equal(fused, model, torch.randn(2, 4, 5, 5))
    assert norms(fused) == []
    assert first.weight is second.weight


def test_a_block_that_is_run_twice_folds_once():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = ConvNormAct(4, 4, 3)

        def forward(self, x):
            return self.block(self.block(x))

    model = stirred(Recurrent())
    fused = fuse(model)
    assert_equal(fused, model, torch.randn(2, 4, 5, 5))
    assert norms(fused) == []
