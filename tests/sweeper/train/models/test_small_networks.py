"""The networks that a first sweep has: fc, cnn and vit."""

import pytest
import torch
from torch import nn

from sweeper.train.models.cnn import cnn
from sweeper.train.models.fc import fc
from sweeper.train.models.vit import vit

DIGIT, COLOUR = (1, 8, 8), (3, 32, 32)


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_fc_on_cifar_is_the_papers_network():
    """3,837,066 parameters in the authors' logs."""
    assert n_parameters(fc(COLOUR, 10, widths=(1024, 512, 256, 128))) == 3_837_066


def test_fc_without_hidden_layers_is_a_linear_classifier():
    model, x = fc(DIGIT, 10, widths=()), torch.randn(3, *DIGIT)
    assert torch.equal(model(x), model[-1](x.flatten(1)))


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", None)]
)
def test_fc_has_the_norm_it_is_asked_for(norm, kind):
    norms = [
        type(module)
        for module in fc(DIGIT, 10, norm=norm).modules()
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm))
    ]
    assert norms == ([] if kind is None else [kind] * 2)


def test_cnn_halves_the_image_at_every_second_convolution():
    features = cnn(DIGIT, 10, widths=(4, 5, 6, 7))[:-4]
    assert features(torch.zeros(2, *DIGIT)).shape == (2, 7, 2, 2)


def test_cnn_counts_its_weights_as_by_hand():
    convolutions = 9 * (1 * 4 + 4 * 5)
    norms = 2 * (4 + 5)
    assert n_parameters(cnn(DIGIT, 10, widths=(4, 5))) == convolutions + norms + 5 * 10 + 10


def test_cnn_has_biases_where_no_norm_has_a_shift():
    convolutions = [m for m in cnn(DIGIT, 10, norm="none").modules() if isinstance(m, nn.Conv2d)]
    assert all(convolution.bias is not None for convolution in convolutions)


def test_vit_equals_pytorchs_own_encoder_with_the_same_weights():
    model = vit(DIGIT, 10, patch=4, dim=12, depth=2, heads=3, mlp=20).eval()
    x = torch.randn(3, *DIGIT)
    tokens = model[0](x)
    for block in model[1:-1]:
        layer = nn.TransformerEncoderLayer(
            12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        ours = [
            block.queries_keys_values,
            block.attention_out,
            block.mlp[1],
            block.mlp[4],
            block.attention_norm,
            block.mlp[0],
        ]
        weights = [weight for module in ours for weight in (module.weight, module.bias)]
        names = dict(layer.named_parameters())
        layer.load_state_dict(dict(zip(names, weights, strict=True)))
        tokens = layer(tokens)
    torch.testing.assert_close(model[-1](tokens), model(x), rtol=1e-5, atol=1e-5)


def test_vit_tells_where_a_patch_is():
    model = vit(DIGIT, 10).eval()
    x = torch.randn(2, *DIGIT)
    assert not torch.allclose(model(x), model(x.roll(4, dims=-1)))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_vit_on_cifar_counts_as_the_papers_network_by_hand(qkv_bias):
    """Their queries, keys and values have no biases, and ours have them by default."""
    attention = 512 * 3 * 512 + 3 * 512 * qkv_bias + 512 * 512 + 512
    block = attention + 2 * (512 * 512 + 512) + 2 * (512 + 512)
    tokens = 3 * 4 * 4 * 512 + 512 + 512 + 65 * 512
    head = 512 + 512 + 512 * 10 + 10
    model = vit(COLOUR, 10, dim=512, depth=6, heads=8, mlp=512, qkv_bias=qkv_bias)
    assert n_parameters(model) == tokens + 6 * block + head
    assert qkv_bias or n_parameters(model) == 9_523_722
