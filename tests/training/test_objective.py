import pytest
import timm
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn

from efficient_vits import auxiliary_loss
from efficient_vits.training import Recipe
from efficient_vits.training.objective import Objective

TINY = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def recipe(**changes):
    return Recipe(img_size=32, teacher="given", **changes)


@pytest.fixture
def batch():
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 2, 4])


def test_without_a_teacher_it_is_the_task_and_the_models_terms(batch):
    model = timm.create_model("vit_ti16", mlp="switch", num_experts=2, **TINY)
    objective = Objective(model, LabelSmoothingCrossEntropy(0.1), Recipe(), None)
    torch.manual_seed(0)
    terms = objective(*batch)
    assert list(terms) == ["task", "auxiliary"]
    assert torch.equal(terms["auxiliary"], auxiliary_loss(model))
    assert terms["auxiliary"] > 0
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_hard_and_soft_distillation_are_their_formulas(batch):
    student, teacher = (timm.create_model("vit_ti16", **TINY).eval() for _ in range(2))
    images, targets = batch
    with torch.no_grad():
        aims, logits = teacher(images), student(images)
    task = F.cross_entropy(logits, targets)
    teacher.pretrained_cfg = {}  # the same normalisation
    hard = Objective(
        student,
        nn.CrossEntropyLoss(),
        recipe(distillation="hard", distillation_weight=0.3),
        teacher,
    )(images, targets)
    hard = {name: term.detach() for name, term in hard.items()}
    assert float(hard["task"]) == pytest.approx(0.7 * float(task), abs=1e-6)
    expected = 0.3 * F.cross_entropy(logits, aims.argmax(1))
    assert float(hard["distillation"]) == pytest.approx(float(expected), abs=1e-6)
    soft = Objective(
        student, nn.CrossEntropyLoss(), recipe(distillation="soft", temperature=2.0), teacher
    )(images, targets)
    soft = {name: term.detach() for name, term in soft.items()}
    p, q = (aims / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert float(soft["distillation"]) == pytest.approx(0.5 * 4 * float(divergence), abs=1e-6)


def test_the_teacher_sees_its_own_normalisation_and_is_no_part_of_it(batch):
    class Seen(nn.Module):
        pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.5)}

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            self.images = images
            return images.mean((2, 3)) @ torch.ones(3, 5)

    teacher, student = Seen(), timm.create_model("vit_ti16", **TINY)
    own = recipe(distillation="hard")
    objective = Objective(student, nn.CrossEntropyLoss(), own, teacher)
    images, targets = batch
    objective(images, targets)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (own.mean, own.std))
    plain = images * std + mean
    expected = (plain - 0.5) / torch.tensor([0.5, 0.25, 0.5]).view(1, 3, 1, 1)
    torch.testing.assert_close(teacher.images, expected)
    assert not teacher.weight.requires_grad
    assert len(list(objective.parameters())) == len(list(student.parameters()))


def test_dynamicvit_learns_from_the_tokens_too(batch):
    student = timm.create_model("vit_ti16", reduction="dynamicvit", **{**TINY, "depth": 4})
    teacher = timm.create_model("vit_ti16", **{**TINY, "depth": 4})
    objective = Objective(
        student.train(), nn.CrossEntropyLoss(), recipe(distillation="dynamicvit"), teacher
    )
    terms = objective(*batch)
    assert terms["distillation"] > 0
    assert terms["auxiliary"] > 0
    sum(terms.values()).backward()


def test_teacher_and_recipe_must_agree():
    student = timm.create_model("vit_ti16", **TINY)
    with pytest.raises(ValueError, match="needs a teacher"):
        Objective(student, nn.CrossEntropyLoss(), recipe(distillation="hard"), None)
    with pytest.raises(ValueError, match="only such a one"):
        Objective(student, nn.CrossEntropyLoss(), Recipe(), student)
