"""What architectures share."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import stochastic_depth

from sweeper.train.models.layers import StochasticDepth, depth_chances, image_norm, vector_norm


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 5, 8), (6, 7)])
def test_stochastic_depth_equals_torchvisions_of_rows_with_the_same_draws(shape):
    x = torch.randn(shape)
    torch.manual_seed(1)
    expected = stochastic_depth(x, 0.4, "row")
    torch.manual_seed(1)
    torch.testing.assert_close(StochasticDepth(0.4)(x), expected)


def test_stochastic_depth_keeps_the_mean_and_drops_as_many_as_it_says():
    torch.manual_seed(0)
    found = StochasticDepth(0.3)(torch.ones(40_000, 1))
    n_dropped = (found == 0).sum().item()
    assert n_dropped == pytest.approx(12_000, abs=5 * (40_000 * 0.3 * 0.7) ** 0.5)
    assert found.mean().item() == pytest.approx(1, abs=5 * (0.3 / 0.7 / 40_000) ** 0.5)


def test_stochastic_depth_is_the_identity_in_evaluation_and_of_chance_0():
    x = torch.randn(3, 2)
    assert StochasticDepth(0.9).eval()(x) is x
    assert StochasticDepth(0.0)(x) is x


def test_chances_of_depth_are_those_of_the_paper():
    """Huang et al., Eq. 4: block l of L survives with probability 1 − l/L (1 − p_L)."""
    survival, n_blocks = 0.5, 4
    expected = [1 - ell / n_blocks * (1 - survival) for ell in range(1, n_blocks + 1)]
    assert [1 - chance for chance in depth_chances(0.5, n_blocks)] == pytest.approx(expected)
    assert depth_chances(0.5, 0) == []


@pytest.mark.parametrize(
    ("width", "n_groups"), [(16, 1), (96, 6), (144, 9), (10, 1), (8, 1), (24, 1)]
)
def test_a_group_is_16_channels_or_all_of_them(width, n_groups):
    x = torch.randn(3, width, 4, 4)
    expected = functional.group_norm(x, n_groups)
    torch.testing.assert_close(image_norm("group", width, False)[0](x), expected)
    (vector,) = vector_norm("group", width, False)
    torch.testing.assert_close(
        vector(x[:, :, 0, 0]), functional.group_norm(x[:, :, 0, 0], n_groups)
    )


def test_a_layer_norm_of_images_is_over_all_of_one_image():
    x = torch.randn(3, 6, 4, 5)
    expected = functional.layer_norm(x, (6, 4, 5))
    torch.testing.assert_close(image_norm("layer", 6, False)[0](x), expected)


def test_a_batch_norm_is_pytorchs_with_its_defaults():
    (found,) = image_norm("batch", 6, True)
    assert repr(found) == repr(nn.BatchNorm2d(6))
