"""torchvision's networks, by name."""

import contextlib
import inspect

import pytest
import torch
import torchvision
from scipy.stats import ks_2samp
from torch import nn
from torch.nn.modules import activation

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.registry import entry
from sweeper.train.dry_run import check
from sweeper.train.models.torchvision import _FAMILIES, _replace_first_convolution

NAMES = torchvision.models.list_models(module=torchvision.models)
# The smallest of each family.
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
]
SMALL_STEMS = {
    "alexnet",
    "densenet",
    "efficientnet",
    "googlenet",
    "inception",
    "mnasnet",
    "mobilenet",
    "regnet",
    "resnet",
    "resnext",
    "shufflenet",
    "squeezenet",
    "wide_resnet",
}
WITH_DEPTH = ["convnext_tiny", "efficientnet_b0", "maxvit_t", "swin_t"]
SIZE = {"alexnet": 64, "maxvit_t": 224}
HEAVY = {"alexnet", "convnext_tiny", "maxvit_t", "swin_t", "vgg11", "vit_b_32"}


def build(name, shape=(3, 32, 32), n_classes=10, **options):
    return entry("model", f"torchvision/{name}").build(shape, n_classes, **options)


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def first_convolution(model):
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def is_small(name):
    return any(name.startswith(prefix) for prefix in SMALL_STEMS)


@contextlib.contextmanager
def undrawn(*, but_first=False):
    """Build without drawing weights, which is nearly all the time that it takes.

    With `but_first`, filters of three channels are drawn, and so are biases and norms.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, draw in inspect.getmembers(nn.init, inspect.isfunction):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, _skipping(draw, but_first))
        # The one that torch's attention has imported by its name.
        patch.setattr(activation, "xavier_uniform_", nn.init.xavier_uniform_)
        yield


def _skipping(draw, but_first):
    def skip(tensor, *args, **kwargs):
        is_needed = but_first and (tensor.ndim == 1 or tensor.shape[1] == 3)
        return draw(tensor, *args, **kwargs) if is_needed else tensor

    return skip


def shapes_alone(name, shape=(3, 32, 32), n_classes=10, **options):
    """The network on the meta device, where a pass costs nothing."""
    with undrawn():
        return build(name, shape, n_classes, **options).to("meta")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_built_with_the_parameters_that_torchvision_publishes(name):
    weights = torchvision.models.get_model_weights(name)
    published = {found.meta["num_params"] for found in weights}
    if name == "inception_v3":
        published = {27_161_264 - 3_326_696}  # without the auxiliary classifier
    with undrawn():
        assert n_parameters(build(name, (3, 224, 224), 1000)) in published


@pytest.mark.parametrize("name", [*FAMILIES, "inception_v3", "resnext50_32x4d", "wide_resnet50_2"])
def test_a_small_stem_is_3_by_3_of_stride_1_or_refused_with_the_reason(name):
    with undrawn():
        if is_small(name):
            stem = first_convolution(build(name, (3, 224, 224), stem="small"))
            assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
        else:
            with pytest.raises(ConfigError, match=f"stem: `small`, but `{name}` "):
                build(name, (3, 224, 224), stem="small")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_grey_images_trains_all_its_parameters(name):
    """For real where that takes a moment, else by the graph that a pass without numbers leaves."""
    shape = (1, SIZE.get(name, 32), SIZE.get(name, 32))
    is_light = name not in HEAVY
    model = build(name, shape, 5) if is_light else shapes_alone(name, shape, 5)
    logits = model(torch.randn(2, *shape, device="cpu" if is_light else "meta"))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path


@pytest.mark.parametrize("name", [name for name in FAMILIES if is_small(name)])
def test_a_small_stem_keeps_the_image_whole(name):
    model = shapes_alone(name, stem="small")
    sides = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda *seen: sides.append(seen[1][0].shape[-1]))
    assert model.eval()(torch.randn(1, 3, 32, 32, device="meta")).shape == (1, 10)
    assert sides[:2] == [32, 32]  # what the first two convolutions see


def test_resnet18_for_small_images_has_the_well_known_number_of_parameters():
    with undrawn():
        assert n_parameters(build("resnet18", stem="small")) == 11_173_962


def test_nothing_but_the_first_convolution_and_the_pool_is_replaced():
    with undrawn():
        usual, small = (
            dict(build("resnet18", stem=stem).named_modules()) for stem in ("imagenet", "small")
        )
    differing = [path for path in usual if path and repr(usual[path]) != repr(small[path])]
    assert differing == ["conv1", "maxpool"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_first_convolution_is_drawn_as_torchvision_draws_it(name):
    """Its own constructor is the reference: one of the same size has the same distribution."""
    torch.manual_seed(0)
    side = SIZE.get(name, 32)
    with undrawn(but_first=True):
        model = build(name, (3, side, side))
    theirs = first_convolution(model)
    family = next(found for prefix, found in _FAMILIES.items() if name.startswith(prefix))
    _replace_first_convolution(model, 3, "imagenet", family.draw)
    ours = first_convolution(model)
    assert theirs is not ours
    assert repr(theirs) == repr(ours)
    weights = [module.weight.detach().flatten().numpy() for module in (theirs, ours)]
    assert weights[0].std() == pytest.approx(weights[1].std(), rel=0.1)
    assert ks_2samp(*weights).pvalue > 1e-4
    if theirs.bias is not None:
        assert bool(theirs.bias.any()) == bool(ours.bias.any())


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_the_trials_wherever_torchvision_has_it(name):
    supplied = entry("model", f"torchvision/{name}").supplied
    side = SIZE.get(name, 32)
    given = {"dropout": 0.25} if "dropout" in supplied else {}
    for chance, options in [(0.0, {}), (0.25, given)]:
        with undrawn():
            model = build(name, (3, side, side), **options)
        rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
        rates |= {m.drop_rate for m in model.modules() if hasattr(m, "drop_rate")}  # densenet
        assert rates <= {0.0, chance}
        assert (chance in rates) == bool(given) or chance == 0.0


@pytest.mark.parametrize("name", FAMILIES)
def test_stochastic_depth_is_the_trials_wherever_torchvision_has_it(name):
    assert ("stochastic_depth" in entry("model", f"torchvision/{name}").supplied) == (
        name in WITH_DEPTH
    )


@pytest.mark.parametrize("name", WITH_DEPTH)
def test_the_chance_of_dropping_a_block_is_in_proportion_to_torchvisions_own(name):
    side = SIZE.get(name, 32)

    def chances(model):
        kinds = torchvision.ops.StochasticDepth
        return [module.p for module in model.modules() if isinstance(module, kinds)]

    with undrawn():
        theirs = chances(torchvision.models.get_model(name))
        assert set(chances(build(name, (3, side, side)))) == {0.0}
        found = chances(build(name, (3, side, side), stochastic_depth=0.3))
    usual = 0.1 if name == "convnext_tiny" else 0.2
    assert found == pytest.approx([0.3 * chance / usual for chance in theirs])


def test_no_auxiliary_classifier_is_left():
    for name in ("googlenet", "inception_v3"):
        with undrawn():
            model = build(name, (3, 96, 96))
        assert not [path for path, _ in model.named_modules() if "aux" in path.lower()]


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet18", (2, 32, 32), {}, "name: images of 2 channels; `torchvision/resnet18` takes 1"),
        ("resnet18", (64,), {}, r"name: samples of shape `\(64,\)`; images are needed"),
        ("vit_b_16", (3, 32, 48), {}, "name: images of 32×48; .* takes square ones"),
        ("vit_h_14", (3, 32, 32), {}, "name: images of 32×32; .* a multiple of 14"),
        ("vgg11", (3, 32, 32), {"stem": "small"}, "begins with a 3×3 convolution of stride 1"),
        ("swin_t", (3, 32, 32), {"stem": "small"}, "begins with patches"),
    ],
)
def test_images_and_stems_that_do_not_fit_are_refused(name, shape, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, shape, **options)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="torchvision has no classification model `resnt18`") as e:
        entry("model", "torchvision/resnt18")
    assert e.value.hint == "did you mean `resnet18`?"


@pytest.mark.parametrize("name", ["fcn_resnet50", "quantized_resnet18", "r3d_18", ""])
def test_what_classifies_no_images_is_refused(name):
    with pytest.raises(ConfigError, match="has no classification model"):
        entry("model", f"torchvision/{name}")


def trial(name, **changes):
    flat = {"data.name": "digits", "optim.name": "sgd", "optim.lr": 0.1, "epochs": 1}
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return TrialConfig.from_flat(flat | {"model.name": name} | changes)


def test_a_trial_of_digits_takes_one_and_names_its_key_where_it_does_not_fit():
    check(trial("torchvision/resnet18", model__stem="small"))
    with pytest.raises(ConfigError, match=r"^model\.stem: `small`, but `vgg11`"):
        check(trial("torchvision/vgg11", model__stem="small"))
    with pytest.raises(ConfigError, match=r"^regularize\.dropout: .* takes no dropout"):
        trial("torchvision/resnet18", regularize__dropout=0.1)
    with pytest.raises(ConfigError, match=r"^model\.name: .*`torchvision/maxvit_t`.*divisible"):
        check(trial("torchvision/maxvit_t"))
