"""Architectures."""

import pytest
import torch
from torch import nn

from sweeper.errors import ConfigError
from sweeper.train.models.cnn import cnn
from sweeper.train.models.fc import fc
from sweeper.train.models.vit import vit

DIGIT, COLOUR = (1, 8, 8), (3, 32, 32)


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("build", [fc, cnn, vit])
@pytest.mark.parametrize("shape", [DIGIT, COLOUR, (2, 4, 12)])
def test_every_model_gives_logits_and_trains_all_its_parameters(build, shape):
    model = build(shape, 7, dropout=0.1)
    logits = model(torch.randn(5, *shape))
    assert logits.shape == (5, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("build", [fc, cnn, vit])
def test_dropout_is_on_in_training_only(build):
    model, x = build(DIGIT, 10, dropout=0.5), torch.randn(4, *DIGIT)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


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


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (fc, {"widths": (10, 0)}, r"widths: `\[10, 0\]`; whole numbers at least 1"),
        (fc, {"widths": (-3,)}, r"widths: `\[-3\]`"),
        (cnn, {"widths": ()}, r"widths: `\[\]`"),
        (cnn, {"widths": (8, -8)}, r"widths: `\[8, -8\]`"),
        (vit, {"patch": 3}, "patch: `3`; a divisor of the image's sides, 8 and 8"),
        (vit, {"patch": 0}, "patch: `0`; a whole number at least 1"),
        (vit, {"dim": 50, "heads": 4}, "heads: `4`; a divisor of `dim`, 50"),
        (vit, {"heads": 0}, "heads: `0`"),
        (vit, {"depth": -1}, "depth: `-1`; a whole number at least 0"),
        (vit, {"mlp": 0}, "mlp: `0`"),
    ],
)
def test_options_that_do_not_fit_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(DIGIT, 10, **options)


@pytest.mark.parametrize("build", [cnn, vit])
def test_models_of_images_refuse_vectors(build):
    with pytest.raises(ConfigError, match=r"samples of shape `\(64,\)`; images are needed"):
        build((64,), 10)
