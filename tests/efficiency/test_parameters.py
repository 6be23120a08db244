from torch import nn

from efficient_vits.efficiency import count_parameters


def test_weights_and_biases_are_counted_and_buffers_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, affine=False))
    assert count_parameters(model) == 3 * 5 + 5


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert count_parameters(model) == 32
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16


def test_frozen_parameters_can_be_left_out() -> None:
    model = nn.Linear(3, 5)
    model.weight.requires_grad_(False)
    assert count_parameters(model) == 20
    assert count_parameters(model, trainable_only=True) == 5
