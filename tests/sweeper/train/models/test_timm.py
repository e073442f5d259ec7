"""timm's networks, by name; with timm where it is installed, and without where it is not."""

import importlib.util

import pytest
import torch

from sweeper.config import TrialConfig
from sweeper.errors import ConfigError
from sweeper.registry import entry

INSTALLED = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not INSTALLED, reason="timm is not installed")


def build(name, shape, **options):
    return entry("model", f"timm/{name}").build(shape, 7, **options)


@pytest.mark.skipif(INSTALLED, reason="timm is installed")
def test_without_timm_its_names_say_how_to_install_it():
    flat = {"data.name": "digits", "optim.name": "sgd", "optim.lr": 0.1, "epochs": 1}
    with pytest.raises(ConfigError, match=r"^model\.name: `timm/resnet18` needs timm") as caught:
        TrialConfig.from_flat(flat | {"model.name": "timm/resnet18"})
    assert caught.value.hint == "pip install timm"


@needs_timm
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (1, 32, 32)),
        ("vit_tiny_patch16_224", (3, 32, 48)),  # made for one size
        ("vgg11", (3, 32, 32)),  # knows no stochastic depth
    ],
)
def test_a_network_fits_the_samples_and_trains_all_its_parameters(name, shape):
    model = build(name, shape)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@needs_timm
def test_dropout_and_stochastic_depth_are_the_trials():
    for rate in (0.0, 0.2):
        model = build("vit_tiny_patch16_224", (3, 32, 32), dropout=rate, stochastic_depth=rate)
        largest = max(getattr(module, "drop_prob", 0.0) for module in model.modules())
        assert largest == pytest.approx(rate)
        assert model.head_drop.p == rate


@needs_timm
def test_stochastic_depth_that_a_network_does_not_know_is_refused():
    with pytest.raises(ConfigError, match=r"stochastic_depth: `0\.2`, but `timm/vgg11` takes no"):
        build("vgg11", (3, 32, 32), stochastic_depth=0.2)


@needs_timm
@pytest.mark.parametrize("name", ["resnet1", "resnet18.a1_in1k"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError, match="timm has no model"):
        entry("model", f"timm/{name}")
