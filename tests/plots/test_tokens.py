"""Pictures of tokens: each patch is painted as what became of it."""

import subprocess
import sys

import pytest
import timm
import torch

import efficient_vits  # noqa: F401 (registers the models)
from efficient_vits.plots import draw_tokens, paint_tokens
from efficient_vits.plots.tokens import LINE, grid_of


@pytest.fixture
def image():
    """2 x 3 patches of 4 x 4 pixels, all pixels different."""
    return torch.linspace(0, 0.5, 3 * 8 * 12).reshape(3, 8, 12)


def test_kept_patches_are_as_they_were(image):
    assert torch.equal(paint_tokens(image, torch.arange(1, 7)), image)


def test_dropped_patches_are_nearly_blank_and_the_others_untouched(image):
    picture = paint_tokens(image, torch.tensor([1, -1, 2, 3, 4, 5]))
    assert (picture[:, :4, 4:8] > 0.85).all()
    rest = torch.ones(8, 12, dtype=torch.bool)
    rest[:4, 4:8] = False
    assert torch.equal(picture[:, rest], image[:, rest])


def test_patches_that_share_a_token_have_their_mean_and_a_line_around(image):
    picture = paint_tokens(image, torch.tensor([1, 2, 2, 3, 4, 5]))
    mean = image[:, :4, 4:].reshape(3, -1).mean(dim=1)
    torch.testing.assert_close(picture[:, 2, 6], mean)
    torch.testing.assert_close(picture[:, 2, 8], mean)  # no line between the two
    assert (picture[:, 2, 4] == LINE).all()
    assert torch.equal(picture[:, 5:, :4], image[:, 5:, :4])


def test_the_grid_follows_the_shape_of_the_image():
    assert grid_of(6, (8, 12)) == (2, 3)
    assert grid_of(6, (12, 8)) == (3, 2)
    assert grid_of(196, (224, 224)) == (14, 14)
    with pytest.raises(ValueError, match="7 patches form no grid"):
        grid_of(7, (8, 12))


def small(name, **arguments):
    return timm.create_model(name, img_size=64, depth=4, num_classes=5, **arguments)


def test_there_is_one_picture_for_each_block_with_fewer_tokens():
    model = small("tome_ti16_r8", r=[3, 0, 2, 0]).train()
    figure = draw_tokens(model, torch.randn(3, 64, 64))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "block 0: 13 tokens", "block 2: 11 tokens"]
    assert model.training
    pictures = [axis.get_images()[0].get_array() for axis in figure.axes]
    assert pictures[0].shape == (64, 64, 3)
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()


def test_a_model_without_a_reduction_is_refused():
    with pytest.raises(TypeError, match="ComposableViT has no token_maps"):
        draw_tokens(small("vit_ti16"), torch.randn(3, 64, 64))


def test_without_matplotlib_it_says_what_to_install():
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import timm, torch, efficient_vits\n"
        "from efficient_vits.plots import draw_tokens\n"
        "model = timm.create_model('tome_ti16_r8', img_size=64, depth=2)\n"
        "try: draw_tokens(model, torch.randn(3, 64, 64))\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "efficient-vits[plots]" in done.stdout
