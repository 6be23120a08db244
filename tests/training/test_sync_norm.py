"""In one process; tests/training/test_distributed.py has two."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from efficient_vits.training import sync_norm
from efficient_vits.training.sync_norm import CpuSyncBatchNorm, synchronise_batch_norms


def alone(monkeypatch):
    monkeypatch.setattr(sync_norm, "_sum", lambda tensor: tensor)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(5), (6, 5)),
        (nn.BatchNorm1d(5, momentum=None), (6, 5, 3)),
        (nn.BatchNorm2d(5, eps=1e-3, momentum=0.3), (6, 5, 4, 3)),
        (nn.BatchNorm2d(5, affine=False), (6, 5, 4, 3)),
        (nn.BatchNorm2d(5, track_running_stats=False), (6, 5, 4, 3)),
        (BatchNormAct2d(5), (6, 5, 4, 3)),
    ],
)
def test_in_one_process_it_is_the_norm_itself(norm, shape, monkeypatch):
    alone(monkeypatch)
    norm = copy.deepcopy(norm)
    own = CpuSyncBatchNorm(copy.deepcopy(norm))
    assert own.state_dict().keys() == norm.state_dict().keys()
    for training in (True, True, False):
        norm.train(training), own.train(training)
        x = torch.randn(shape) * 3 + 1
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [module(part) for module, part in zip((norm, own), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            (output * torch.linspace(0, 1, output.numel()).view(shape)).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(buffer, own.get_buffer(name))


def test_all_of_a_models_norms_are_replaced(monkeypatch):
    alone(monkeypatch)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    names = list(model.state_dict())
    synchronised = synchronise_batch_norms(model, torch.device("cpu"))
    assert list(synchronised.state_dict()) == names
    assert not any(isinstance(module, nn.BatchNorm2d) for module in synchronised.modules())
    assert synchronised(torch.randn(2, 3, 4, 4)).shape == (2, 4, 4, 4)
