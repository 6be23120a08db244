import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn

from efficient_vits.training import Recipe
from efficient_vits.training.objective import Objective
from efficient_vits.training.unused import unused_parameters

BATCH = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])


def objective(**arguments):
    tiny = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_ti16", **tiny, **arguments)
    return Objective(model, LabelSmoothingCrossEntropy(0.1), Recipe(), None)


@pytest.mark.parametrize("mlp", ["mlp", "switch"])
def test_all_are_used(mlp):
    assert unused_parameters(objective(mlp=mlp), *BATCH) == []


def test_what_the_pass_leaves_out_is_found():
    tried = objective()
    tried.model.spare = nn.Linear(2, 2)
    tried.model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    assert unused_parameters(tried, *BATCH) == ["model.spare.weight", "model.spare.bias"]


def test_the_model_is_as_it_was():
    tried = objective(attention="slab").eval()  # its batch norms would count the batch
    before = {name: value.clone() for name, value in tried.state_dict().items()}
    unused_parameters(tried, *BATCH)
    assert not tried.training
    assert all(torch.equal(before[name], value) for name, value in tried.state_dict().items())
    assert all(parameter.grad is None for parameter in tried.parameters())
