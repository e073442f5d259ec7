"""Every classification network of torchvision, by its name there."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torchvision.models
from torch import Tensor, nn
from torch.nn import init

from sweeper.errors import ConfigError, nearest
from sweeper.train.models.layers import check_images

_PATCHES = "begins with patches, which have no smaller form by that name"


def _fan_out(weight: Tensor) -> None:
    init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _patches(weight: Tensor) -> None:
    init.trunc_normal_(weight, std=math.sqrt(1 / weight[0].numel()))


@dataclass(frozen=True)
class _Family:
    """What torchvision calls alike in its networks, but differs between them.

    Parameters
    ----------
    draw : how a constructor draws the first convolution, whose bias is then 0; None is as
        PyTorch does.
    dropout, depth : the keywords that take dropout and stochastic depth.
    pool : the first max-pool.
    not_small : why `stem: small` means nothing, as the rest of a sentence.
    """

    draw: Callable[[Tensor], object] | None
    dropout: tuple[str, ...] = ()
    depth: str = ""
    pool: str = ""
    not_small: str = ""


_RESCALED = "rescaled"  # their constructors fix it, so it is rescaled afterwards
_DROPOUT = ("dropout",)
_RESIDUAL = _Family(_fan_out, pool="maxpool")
_MOBILE = _Family(_fan_out, _DROPOUT)

# By the first letters of the name.
_FAMILIES: Mapping[str, _Family] = {
    "alexnet": _Family(None, _DROPOUT, pool="features.2"),
    "convnext": _Family(
        lambda weight: init.trunc_normal_(weight, std=0.02),
        depth="stochastic_depth_prob",
        not_small=_PATCHES,
    ),
    "densenet": _Family(init.kaiming_normal_, ("drop_rate",), pool="features.pool0"),
    "efficientnet": _Family(_fan_out, _DROPOUT, "stochastic_depth_prob"),
    "googlenet": _Family(
        lambda weight: init.trunc_normal_(weight, std=0.01), _DROPOUT, pool="maxpool1"
    ),
    "inception": _Family(
        lambda weight: init.trunc_normal_(weight, std=0.1), _DROPOUT, pool="maxpool1"
    ),
    "maxvit": _Family(
        lambda weight: init.normal_(weight, std=0.02),
        ("mlp_dropout", "attention_dropout"),
        _RESCALED,
        not_small="lays out its windows for the stem that it has",
    ),
    "mnasnet": _MOBILE,
    "mobilenet": _MOBILE,
    "regnet": _Family(_fan_out),
    "resnet": _RESIDUAL,
    "resnext": _RESIDUAL,
    "shufflenet": _Family(None, pool="maxpool"),
    "squeezenet": _Family(init.kaiming_uniform_, _DROPOUT, pool="features.2"),
    "swin": _Family(None, _DROPOUT, _RESCALED, not_small=_PATCHES),
    "vgg": _Family(_fan_out, _DROPOUT, not_small="begins with a 3×3 convolution of stride 1"),
    "vit": _Family(_patches, _DROPOUT, not_small=_PATCHES),
    "wide_resnet": _RESIDUAL,
}


def torchvision_model(name: str) -> Callable[..., nn.Module]:
    """The entry of torchvision's classification network of that name; nothing is downloaded.

    Its options are `stem` and, where torchvision's constructor takes them, the supplied
    `dropout` and `stochastic_depth`. These are 0 unless asked for, whatever torchvision's own
    default is. `stem: small` is for small images: the first convolution becomes 3×3 with stride 1
    and the max-pool behind it is left out, as He et al., CVPR 2016, arXiv:1512.03385, Section 4.2,
    begin on CIFAR-10; 11,173,962 parameters for `resnet18`. For images of one channel the first
    convolution is replaced. A first convolution is drawn anew as torchvision draws it.
    GoogLeNet and Inception are without their auxiliary classifiers.

    Raises
    ------
    ConfigError : torchvision has no such network; or, from the entry, samples are not images of
        one or three channels, or the network has no such stem or does not take their size.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        allowed = "a name that `torchvision.models.list_models(module=torchvision.models)` has"
        near = nearest(name, known)
        raise ConfigError(
            "name", f"torchvision has no classification model `{name}`", allowed, near
        )
    family = _FAMILIES.get(max((key for key in _FAMILIES if name.startswith(key)), default=""))
    if family is None:
        raise ConfigError(
            "name",
            f"`{name}` of torchvision is not one that sweeper knows",
            f"names that begin with {', '.join(_FAMILIES)}",
        )

    def build(
        shape: tuple[int, ...],
        n_classes: int,
        stem: Literal["imagenet", "small"] = "imagenet",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> nn.Module:
        _check(name, family, shape, stem)
        options = _options(name, shape) | dict.fromkeys(family.dropout, dropout)
        if family.depth and family.depth != _RESCALED:
            options[family.depth] = stochastic_depth
        model = torchvision.models.get_model(name, weights=None, num_classes=n_classes, **options)
        if family.depth == _RESCALED:
            _rescale_depth(model, stochastic_depth)
        if stem == "small" or shape[0] != 3:
            _replace_first_convolution(model, shape[0], stem, family.draw)
        if stem == "small" and family.pool:
            _put(model, family.pool, nn.Identity())
        return model

    absent = {"dropout"} - {"dropout" for _ in family.dropout}
    absent |= set() if family.depth else {"stochastic_depth"}
    signature = inspect.signature(build)
    kept = [item for item in signature.parameters.values() if item.name not in absent]
    build.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return build


def _check(name: str, family: _Family, shape: tuple[int, ...], stem: str) -> None:
    check_images(shape)
    channels, height, width = shape
    if channels not in (1, 3):
        raise ConfigError(
            "name", f"images of {channels} channels", f"`torchvision/{name}` takes 1 or 3"
        )
    if stem == "small" and family.not_small:
        raise ConfigError("stem", f"`small`, but `{name}` {family.not_small}", "`imagenet` for it")
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        if height != width or height % patch:
            raise ConfigError(
                "name",
                f"images of {height}×{width}",
                f"`torchvision/{name}` takes square ones, their side a multiple of {patch}",
                "`data.image_size` resizes them",
            )


def _options(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a constructor must be told beside the number of classes."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": shape[1]}
    return {"input_size": shape[1:]} if name.startswith("maxvit") else {}


def _rescale_depth(model: nn.Module, stochastic_depth: float) -> None:
    """Give the last block that chance, and the others their share of it."""
    layers = [m for m in model.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p = stochastic_depth * layer.p / largest


def _replace_first_convolution(
    model: nn.Module, channels: int, stem: str, draw: Callable[[Tensor], object] | None
) -> None:
    """One for other images in its place, drawn in the same way."""
    path, old = next(
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )
    kernel, stride, padding = old.kernel_size[0], old.stride[0], old.padding[0]  # all are square
    if stem == "small":
        kernel, stride, padding = 3, 1, 1
    bias = old.bias is not None
    new = nn.Conv2d(channels, old.out_channels, kernel, stride, padding, bias=bias)
    if draw is not None:
        draw(new.weight)
        if new.bias is not None:
            init.zeros_(new.bias)
    _put(model, path, new)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
