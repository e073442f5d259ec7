"""The networks of the two studies, layer by layer and by their published parameter counts."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, gelu, linear, relu

from sweeper.train.models.allcnn import allcnn
from sweeper.train.models.convmixer import convmixer
from sweeper.train.models.residual import residual
from sweeper.train.models.wrn import wrn, wrn_10_4_8, wrn_16_4_64

COLOUR = (3, 32, 32)


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def layers(model, x):
    """(kind, in, out, kernel, stride, side of the output) of each layer, in the order of calls."""
    found = []

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            sizes = (module.in_channels, module.out_channels)
            kind = "conv" if module.bias is None else "conv+bias"
            found.append((kind, *sizes, module.kernel_size[0], module.stride[0], output.shape[-1]))
        elif isinstance(module, nn.BatchNorm2d):
            kind = "norm+weights" if module.affine else "norm"
            found.append((kind, module.num_features, output.shape[-1]))
        elif isinstance(module, nn.ReLU):
            found.append(("relu", output.shape[-1]))
        elif isinstance(module, nn.Linear):
            found.append(("linear", module.in_features, module.out_features))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def test_allcnn_is_the_table_layer_by_layer():
    model = allcnn(COLOUR, 10)
    assert layers(model, torch.zeros(2, *COLOUR)) == [
        ("conv+bias", 3, 96, 3, 1, 32),
        ("relu", 32),
        ("norm+weights", 96, 32),
        ("conv+bias", 96, 96, 3, 2, 16),
        ("relu", 16),
        ("norm+weights", 96, 16),
        ("conv+bias", 96, 144, 3, 1, 16),
        ("relu", 16),
        ("norm+weights", 144, 16),
        ("conv+bias", 144, 144, 3, 2, 8),
        ("relu", 8),
        ("norm+weights", 144, 8),
        ("conv+bias", 144, 10, 1, 1, 8),
        ("relu", 8),
        ("norm+weights", 10, 8),
    ]
    assert n_parameters(model) == 399_486


def test_allcnn_gives_means_over_the_image():
    model = allcnn(COLOUR, 10).eval()
    x = torch.randn(2, *COLOUR)
    assert torch.allclose(model(x), model[:-2](x).mean(dim=(2, 3)), atol=1e-6)


WRN_10_4_8 = [
    ("conv", 3, 8, 3, 1, 32),
    # the way around, then the branch
    ("conv+bias", 8, 32, 1, 1, 32),
    ("norm", 8, 32),
    ("relu", 32),
    ("conv", 8, 32, 3, 1, 32),
    ("norm", 32, 32),
    ("relu", 32),
    ("conv", 32, 32, 3, 1, 32),
    ("conv+bias", 32, 64, 1, 2, 16),
    ("norm", 32, 32),
    ("relu", 32),
    ("conv", 32, 64, 3, 1, 32),
    ("norm", 64, 32),
    ("relu", 32),
    ("conv", 64, 64, 3, 2, 16),
    ("conv+bias", 64, 128, 1, 2, 8),
    ("norm", 64, 16),
    ("relu", 16),
    ("conv", 64, 128, 3, 1, 16),
    ("norm", 128, 16),
    ("relu", 16),
    ("conv", 128, 128, 3, 2, 8),
    ("norm", 128, 8),
    ("relu", 8),
    ("linear", 128, 10),
]
WRN_16_4_64 = [
    ("conv", 3, 64, 3, 1, 32),
    ("conv+bias", 64, 256, 1, 1, 32),
    ("norm", 64, 32),
    ("relu", 32),
    ("conv", 64, 256, 3, 1, 32),
    ("norm", 256, 32),
    ("relu", 32),
    ("conv", 256, 256, 3, 1, 32),
    ("norm", 256, 32),
    ("relu", 32),
    ("conv", 256, 256, 3, 1, 32),
    ("norm", 256, 32),
    ("relu", 32),
    ("conv", 256, 256, 3, 1, 32),
    ("conv+bias", 256, 512, 1, 2, 16),
    ("norm", 256, 32),
    ("relu", 32),
    ("conv", 256, 512, 3, 1, 32),
    ("norm", 512, 32),
    ("relu", 32),
    ("conv", 512, 512, 3, 2, 16),
    ("norm", 512, 16),
    ("relu", 16),
    ("conv", 512, 512, 3, 1, 16),
    ("norm", 512, 16),
    ("relu", 16),
    ("conv", 512, 512, 3, 1, 16),
    ("conv+bias", 512, 1024, 1, 2, 8),
    ("norm", 512, 16),
    ("relu", 16),
    ("conv", 512, 1024, 3, 1, 16),
    ("norm", 1024, 16),
    ("relu", 16),
    ("conv", 1024, 1024, 3, 2, 8),
    ("norm", 1024, 8),
    ("relu", 8),
    ("conv", 1024, 1024, 3, 1, 8),
    ("norm", 1024, 8),
    ("relu", 8),
    ("conv", 1024, 1024, 3, 1, 8),
    ("norm", 1024, 8),
    ("relu", 8),
    ("linear", 1024, 10),
]


@pytest.mark.parametrize(
    ("build", "table", "count"),
    [(wrn_10_4_8, WRN_10_4_8, 300_226), (wrn_16_4_64, WRN_16_4_64, 43_890_122)],
)
def test_the_wide_residual_networks_are_the_table_layer_by_layer(build, table, count):
    with torch.no_grad():
        model = build(COLOUR, 10)
        assert layers(model, torch.zeros(2, *COLOUR)) == table
    assert n_parameters(model) == count


def test_a_wide_residual_network_equals_its_formula():
    """Depth 16: a block whose way around is the identity follows each that changes shapes."""
    torch.manual_seed(0)
    model, x = wrn(COLOUR, 10, depth=16, widen=2, base=4), torch.randn(3, *COLOUR)
    found = model(x)
    weights = iter(model.parameters())

    def before(x):
        return relu(batch_norm(x, None, None, training=True))

    y = conv2d(x, next(weights), padding=1)
    for strides in ((1, 1), (2, 1), (2, 1)):
        for index, stride in enumerate(strides):
            branch = conv2d(before(y), next(weights), padding=1)
            branch = conv2d(before(branch), next(weights), padding=1, stride=stride)
            if index == 0:
                y = conv2d(y, next(weights), next(weights), stride=stride)
            y = y + branch
    expected = linear(before(y).mean(dim=(2, 3)), next(weights), next(weights))
    assert next(weights, None) is None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_convmixer_is_the_papers_layer_by_layer():
    model = convmixer(COLOUR, 10)
    block = [
        ("conv+bias", 256, 256, 5, 1, 16),
        ("norm+weights", 256, 16),
        ("conv+bias", 256, 256, 1, 1, 16),
        ("norm+weights", 256, 16),
    ]
    patches = [("conv+bias", 3, 256, 2, 2, 16), ("norm+weights", 256, 16)]
    with torch.no_grad():
        assert layers(model, torch.zeros(2, *COLOUR)) == [
            *patches,
            *(8 * block),
            ("linear", 256, 10),
        ]
    assert n_parameters(model) == 594_186


def test_convmixer_equals_its_formula():
    torch.manual_seed(0)
    model, x = convmixer(COLOUR, 10, dim=6, depth=2, kernel=3), torch.randn(3, *COLOUR)
    found = model(x)
    weights = iter(model.parameters())

    def after(x, **how):
        y = gelu(conv2d(x, next(weights), next(weights), **how))
        return batch_norm(y, None, None, next(weights), next(weights), training=True)

    y = after(x, stride=2)
    for _ in range(2):
        y = y + after(y, groups=6, padding="same")
        y = after(y)
    expected = linear(y.mean(dim=(2, 3)), next(weights), next(weights))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("blocks", "n_flat", "count"),
    [(6, 1024, 4_886_794), (4, 2048, 3_834_378), (2, 4096, 5_405_322), (0, 4096, 5_257_098)],
)
def test_the_residual_family_has_the_published_sizes(blocks, n_flat, count):
    """4.89, 3.84, 5.41 and 5.26 million with the running statistics, which Keras counts too."""
    model = residual(COLOUR, 10, blocks=blocks)
    assert n_parameters(model) == count
    kept = sum(b.numel() for name, b in model.named_buffers() if not name.endswith("tracked"))
    published = {6: 4.89, 4: 3.84, 2: 5.41, 0: 5.26}
    assert round((count + kept) / 1e6, 2) == published[blocks]
    last = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [module.in_features for module in last] == [n_flat, 1024, 1024]


def test_the_residual_network_of_four_blocks_is_the_study_layer_by_layer():
    unit = [("conv+bias", 64, 64, 3, 1, 32), ("norm+weights", 64, 32), ("relu", 32)]
    into = [("conv+bias", 64, 128, 3, 2, 16), ("norm+weights", 128, 16), ("relu", 16)]
    around = [("conv+bias", 64, 128, 1, 2, 16), ("norm+weights", 128, 16), ("relu", 16)]
    wide = [("conv+bias", 128, 128, 3, 1, 16), ("norm+weights", 128, 16), ("relu", 16)]
    same = [*unit, *unit, ("relu", 32)]
    with torch.no_grad():
        found = layers(residual(COLOUR, 10, blocks=4), torch.zeros(2, *COLOUR))
    assert found == [
        ("conv+bias", 3, 64, 3, 1, 32),
        *unit[1:],
        *same,
        *same,
        *around,
        *into,
        *wide,
        ("relu", 16),
        *wide,
        *wide,
        ("relu", 16),
        ("linear", 2048, 1024),
        ("relu", 1024),
        ("linear", 1024, 1024),
        ("relu", 1024),
        ("linear", 1024, 10),
    ]


def test_the_residual_network_drops_where_the_study_does():
    """After the first convolution, each stage and the means, and not behind linear layers."""
    model = residual(COLOUR, 10, blocks=6, width=4, hidden=8, dropout=0.1)
    kinds = [type(module).__name__ for module in model if not isinstance(module, nn.BatchNorm2d)]
    stage = ["Residual", "ReLU", "Residual", "ReLU", "Dropout"]
    assert kinds == [
        *("Conv2d", "ReLU", "Dropout"),
        *(3 * stage),
        *("AvgPool2d", "Dropout", "Flatten"),
        *("Linear", "ReLU", "Linear", "ReLU", "Linear"),
    ]
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_the_residual_network_takes_the_means_of_4_by_4_pixels():
    model = residual(COLOUR, 10, blocks=0, width=4, hidden=8).eval()
    x = torch.randn(2, *COLOUR)
    before = model[:3](x)
    means = before.view(2, 4, 8, 4, 8, 4).mean(dim=(3, 5)).flatten(1)
    assert torch.allclose(model(x), model[-5:](means), atol=1e-5)
