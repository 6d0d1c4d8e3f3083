"""A dilated ResNet (He et al. 2016), the backbone of CoANet, with weights from torchvision."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tprnet_jax.models import weights
from tprnet_jax.models.parts import TORCH_PARAMETERS, BatchNorm, Conv3

STRIDE = 8  # Of the coarsest features; sides have to be multiples of it.
he_normal_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """Bottleneck ResNet that keeps an eighth of the resolution (DeepLab v3, Chen et al. 2017).

    The third stage is dilated by 2, and the fourth one's blocks by 4, 8 and 16, instead of being
    strided. As in torchvision, the 3x3 convolution of a block has the stride. Kernels start He
    normal by their outputs, which PyTorch calls `fan_out`.

    Attributes:
        channels: Of the stem and inside the blocks of the first stage, then of the next ones; the
            features of a stage are four times as wide.
        blocks: Of each stage; ResNet-101's by default.
        dtype: Type of the computation.
    """

    channels: Sequence[int] = (64, 128, 256, 512)
    blocks: Sequence[int] = (3, 4, 23, 3)
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False) -> list[jax.Array]:
        """Maps images to the features of each stage, at 1/4, 1/8, 1/8 and 1/8 of the resolution.

        Args:
            x: `(batch, height, width, any)`, sides multiples of `STRIDE`.
            train: Whether the batch is normalised by its own statistics.
        """
        border = ((3, 3), (3, 3))
        x = _conv(self.channels[0], (7, 7), self.dtype, "conv1", strides=2, padding=border)(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        stages = []
        for stage, (channels, blocks) in enumerate(zip(self.channels, self.blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stage == 1 and block == 0 else 1
                dilation = (1, 1, 2, 4 * 2**block)[stage]
                name = f"layer{stage + 1}_{block}"
                x = Bottleneck(channels, stride, dilation, block == 0, self.dtype, name=name)(
                    x, train
                )
            stages.append(x)
        return stages

    def torch_names(self, path: tuple[str, ...]) -> Iterator[str]:
        """The name in torchvision's state dict, as of `("layer1_0", "conv1", "kernel")`."""
        yield torch_name(path)

    def torch_idle(self) -> dict[str, tuple[int, ...]]:
        """What PyTorch counts besides; the layer for ImageNet's classes is not among it."""
        return dict.fromkeys(batches_tracked(weights.tensors(self)), ())


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, the last one four times as wide.

    Attributes:
        channels: Of the first two.
        stride: Of the 3x3 one.
        dilation: Of the 3x3 one.
        projected: Whether the input passes a 1x1 convolution before it is added.
        dtype: Type of the computation.
    """

    channels: int
    stride: int
    dilation: int
    projected: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps `(batch, height, width, any)` to `(batch, height / stride, ..., 4 channels)`."""
        wide, identity = 4 * self.channels, x
        x = _conv(self.channels, (1, 1), self.dtype, "conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = Conv3(
            self.channels,
            self.stride,
            self.dilation,
            use_bias=False,
            kernel_init=he_normal_out,
            dtype=self.dtype,
            name="conv2",
        )(x)
        x = nn.relu(BatchNorm(name="bn2")(x, train))
        x = BatchNorm(name="bn3")(_conv(wide, (1, 1), self.dtype, "conv3")(x), train)
        if self.projected:
            project = _conv(wide, (1, 1), self.dtype, "downsample_0", strides=self.stride)
            identity = BatchNorm(name="downsample_1")(project(identity), train)
        return nn.relu(x + identity)


def _conv(features: int, size: tuple[int, int], dtype, name: str, **more) -> nn.Conv:
    return nn.Conv(
        features, size, use_bias=False, kernel_init=he_normal_out, dtype=dtype, name=name, **more
    )


def torch_name(path: tuple[str, ...]) -> str:
    """A parameter's name in PyTorch: modules have it here too, with "_" for a dot before digits."""
    *modules, parameter = path
    modules = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
    return ".".join([*modules, TORCH_PARAMETERS[parameter]])


def batches_tracked(tensors) -> Iterator[str]:
    """Names under which PyTorch counts the batches that each of these normalisations has seen."""
    for tensor in tensors:
        if tensor.path[-1] == "mean":
            yield tensor.names[0].replace("running_mean", "num_batches_tracked")


def with_torchvision(params: dict, net: ResNet, state: dict[str, np.ndarray]) -> dict:
    """A network's parameters, its backbone's replaced by those of a torchvision ResNet.

    Torchvision's networks see three channels. For images of one channel the stem's kernel becomes
    the sum over the three, which does to a grey image what the original does to it three times; it
    was trained on images less ImageNet's mean, over its standard deviation.

    Args:
        params: Parameters of the whole network, with a "backbone".
        net: The backbone.
        state: Torchvision's tensors by name, with or without the layer for ImageNet's classes.

    Raises:
        UserError: A tensor is missing, one too many, or of another shape.
    """
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    backbone = weights.from_torch({"global": net}, state, channels=3)["global"]
    if params["backbone"]["conv1"]["kernel"].shape[2] == 1:
        kernel = backbone["conv1"]["kernel"].sum(axis=2, keepdims=True)
        backbone = {**backbone, "conv1": {"kernel": kernel}}
    return {**params, "backbone": backbone}
