from torch import nn

from efficient_vits.efficiency import count_active_parameters, count_parameters


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


class Choice(nn.Module):
    """Two linear layers of which one is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    @property
    def active_parameters(self) -> int:
        return count_parameters(self.first)


def test_what_is_chosen_among_counts_as_far_as_it_is_at_work() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(Choice()))
    assert count_parameters(model) == 20 + 24
    assert count_active_parameters(model) == 20 + 12
    assert count_active_parameters(Choice()) == 12


def test_without_a_choice_all_parameters_are_active() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_active_parameters(model) == count_parameters(model)
    twice = nn.Linear(2, 2)
    assert count_active_parameters(nn.Sequential(twice, twice)) == 6
