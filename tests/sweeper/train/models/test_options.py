"""What the options of all architectures have in common."""

import functools

import pytest
import torch
from torch import nn

from sweeper.errors import ConfigError
from sweeper.train.models.allcnn import allcnn
from sweeper.train.models.cnn import cnn
from sweeper.train.models.convmixer import convmixer
from sweeper.train.models.fc import fc
from sweeper.train.models.residual import residual
from sweeper.train.models.vit import vit
from sweeper.train.models.wrn import wrn, wrn_10_4_8, wrn_16_4_64

DIGIT, COLOUR = (1, 8, 8), (3, 16, 16)
# Small enough to be fast, wide enough for two groups of a group norm.
SMALL = {
    "allcnn": functools.partial(allcnn, widths=(32, 32)),
    "cnn": functools.partial(cnn, widths=(32, 32)),
    "convmixer": functools.partial(convmixer, dim=32, depth=2, kernel=3),
    "fc": functools.partial(fc, widths=(32, 48)),
    "residual": functools.partial(residual, blocks=4, width=32, hidden=24),
    "wrn": functools.partial(wrn, depth=10, widen=2, base=16),
    "wrn-10-4-8": wrn_10_4_8,
    "vit": functools.partial(vit, dim=32),
}
NORM_OF = [  # a vit has no other
    (name, norm)
    for name in SMALL
    for norm in ("batch", "layer", "group", "none")
    if name != "vit" or norm in ("layer", "none")
]
WITH_NORMS = [name for name in SMALL if name != "vit"]
DEEP = ["convmixer", "vit", "wrn", "wrn-10-4-8"]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def of_type(model, kinds):
    return [module for module in model.modules() if isinstance(module, kinds)]


def skeleton(model, without):
    """The layers that hold no others, by kind and size, but for those of some kinds."""
    leaves = [module for module in model.modules() if not list(module.children())]
    weights = [(type(leaf), getattr(leaf, "weight", None)) for leaf in leaves]
    return [
        (kind, None if weight is None else weight.shape)
        for kind, weight in weights
        if not issubclass(kind, without)
    ]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [DIGIT, COLOUR, (2, 4, 12)])
def test_every_model_gives_logits_and_trains_all_its_parameters(name, shape):
    model = SMALL[name](shape, 7, dropout=0.1)
    logits = model(torch.randn(5, *shape))
    assert logits.shape == (5, 7)
    (logits * torch.randn(5, 7)).sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path


@pytest.mark.parametrize(("name", "norm"), NORM_OF)
def test_a_gradient_that_is_not_zero_reaches_every_weight(name, norm):
    torch.manual_seed(0)
    model = SMALL[name](COLOUR, 10, norm=norm)
    # Not the sum of squares alone: logits that are normalised have a constant one.
    (model(torch.randn(6, *COLOUR)) * torch.randn(6, 10)).sum().backward()
    for path, parameter in model.named_parameters():
        if path.endswith("weight"):
            assert parameter.grad.abs().max() > 0, path


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_on_in_training_only(name):
    torch.manual_seed(0)
    model, x = SMALL[name](DIGIT, 10, dropout=0.5), torch.randn(4, *DIGIT)
    for norm in of_type(model, BATCH_NORMS):  # so that only dropout tells two passes apart
        norm.momentum = 0.0
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", WITH_NORMS)
@pytest.mark.parametrize("norm", ["layer", "group", "none"])
def test_a_norm_takes_the_place_of_every_norm_and_of_nothing_else(name, norm):
    usual, other = SMALL[name](COLOUR, 10), SMALL[name](COLOUR, 10, norm=norm)
    kinds = {"layer": (nn.LayerNorm, nn.GroupNorm), "group": nn.GroupNorm}
    n_norms = len(of_type(usual, NORMS))
    assert n_norms > 1
    assert len(of_type(usual, BATCH_NORMS)) == n_norms
    assert len(of_type(other, NORMS)) == (0 if norm == "none" else n_norms)
    if norm != "none":
        assert len(of_type(other, kinds[norm])) == n_norms
    assert skeleton(other, NORMS) == skeleton(usual, NORMS)


def test_a_vit_without_norms_has_none_and_is_else_the_same():
    usual, other = SMALL["vit"](COLOUR, 10), SMALL["vit"](COLOUR, 10, norm="none")
    assert len(of_type(usual, nn.LayerNorm)) == 2 * 2 + 1
    assert not of_type(other, NORMS)
    without = (*NORMS, nn.Identity)
    assert skeleton(other, without) == skeleton(usual, without)


@pytest.mark.parametrize(("name", "norm"), [case for case in NORM_OF if case[1] != "none"])
def test_affine_adds_a_scale_and_a_shift_to_every_norm_and_nothing_else(name, norm):
    with_weights = SMALL[name](COLOUR, 10, norm=norm, affine=True)
    without = SMALL[name](COLOUR, 10, norm=norm, affine=False)
    for module in of_type(without, NORMS):
        assert not list(module.parameters())
    for module in of_type(with_weights, NORMS):
        assert len(list(module.parameters())) == 2
    assert skeleton(with_weights, NORMS) == skeleton(without, NORMS)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_takes_the_place_of_every_one_and_of_nothing_else(name, activation):
    usual, other = SMALL[name](COLOUR, 10), SMALL[name](COLOUR, 10, activation=activation)
    kinds = tuple(ACTIVATIONS.values())
    found = of_type(other, kinds)
    assert len(found) == len(of_type(usual, kinds)) > 0
    assert {type(module) for module in found} == {ACTIVATIONS[activation]}
    assert skeleton(other, kinds) == skeleton(usual, kinds)


@pytest.mark.parametrize("name", DEEP)
def test_stochastic_depth_of_0_and_in_evaluation_changes_nothing(name):
    x = torch.randn(4, *COLOUR)
    found = []
    for chance in (0.0, 0.5):
        torch.manual_seed(0)
        model = SMALL[name](COLOUR, 10, stochastic_depth=chance)
        found.append((model.eval()(x), model.train()(x)))
    (eval_without, train_without), (eval_with, train_with) = found
    assert torch.equal(eval_without, eval_with)
    assert not torch.equal(train_without, train_with)
    torch.manual_seed(0)
    assert torch.equal(SMALL[name](COLOUR, 10)(x), train_without)


@pytest.mark.parametrize("name", DEEP)
def test_the_chance_of_dropping_a_block_grows_linearly_to_what_is_asked_for(name):
    model = SMALL[name](COLOUR, 10, stochastic_depth=0.3)
    chances = [module.p for module in model.modules() if hasattr(module, "p")]
    chances = [chance for chance in chances if chance]  # dropout is 0
    n_blocks = {"convmixer": 2, "vit": 2, "wrn": 3, "wrn-10-4-8": 3}[name]
    assert chances == pytest.approx([0.3 * (i + 1) / n_blocks for i in range(n_blocks)])


@pytest.mark.parametrize("name", [*SMALL])
def test_affine_without_a_norm_is_refused(name):
    usual = name not in ("fc", "wrn", "wrn-10-4-8")
    with pytest.raises(ConfigError, match=r"affine: `(true|false)`, but `norm` is `none`; leave"):
        SMALL[name](COLOUR, 10, norm="none", affine=not usual)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "fc"])
def test_models_of_images_refuse_vectors(name):
    with pytest.raises(ConfigError, match=r"samples of shape `\(64,\)`; images are needed"):
        SMALL[name]((64,), 10)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (allcnn, {"widths": ()}, r"widths: `\[\]`; whole numbers at least 1"),
        (allcnn, {"widths": (4, 0)}, r"widths: `\[4, 0\]`"),
        (cnn, {"widths": ()}, r"widths: `\[\]`"),
        (cnn, {"widths": (8, -8)}, r"widths: `\[8, -8\]`"),
        (convmixer, {"kernel": 4}, "kernel: `4`; an odd number"),
        (convmixer, {"kernel": 0}, "kernel: `0`; a whole number at least 1"),
        (convmixer, {"patch": 9}, "patch: `9`; at most the image's side, 8"),
        (convmixer, {"dim": 0}, "dim: `0`"),
        (convmixer, {"depth": 0}, "depth: `0`; a whole number at least 1"),
        (fc, {"widths": (10, 0)}, r"widths: `\[10, 0\]`; whole numbers at least 1"),
        (fc, {"widths": (-3,)}, r"widths: `\[-3\]`"),
        (residual, {"width": 0}, "width: `0`; a whole number at least 1"),
        (residual, {"hidden": 0}, "hidden: `0`; a whole number at least 1"),
        (vit, {"patch": 3}, "patch: `3`; a divisor of the image's sides, 8 and 8"),
        (vit, {"patch": 0}, "patch: `0`; a whole number at least 1"),
        (vit, {"dim": 50, "heads": 4}, "heads: `4`; a divisor of `dim`, 50"),
        (vit, {"heads": 0}, "heads: `0`"),
        (vit, {"depth": 0}, "depth: `0`; a whole number at least 1"),
        (vit, {"mlp": 0}, "mlp: `0`"),
        (wrn, {"depth": 4}, r"depth: `4`; 6 n \+ 4 is needed"),
        (wrn, {"depth": 12}, r"depth: `12`; 6 n \+ 4 is needed"),
        (wrn, {"widen": 0}, "widen: `0`"),
        (wrn, {"base": 0}, "base: `0`"),
    ],
)
def test_options_that_do_not_fit_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(DIGIT, 10, **options)


def test_the_large_network_is_not_built_to_refuse_its_options():
    with pytest.raises(ConfigError, match="affine"):
        wrn_16_4_64(DIGIT, 10, norm="none", affine=True)
