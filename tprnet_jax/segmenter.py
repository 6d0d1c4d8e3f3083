"""Angiograms to masks from Python: with the model that comes along, or one of your own."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax import workdir
from tprnet_jax.data.images import stretch
from tprnet_jax.method import inference
from tprnet_jax.method.cascade import Cascade, param_shapes
from tprnet_jax.models.coanet import CoANet
from tprnet_jax.models.dscnet import DSCNet
from tprnet_jax.models.lkm_unet import LKMUNet
from tprnet_jax.models.resunet import ResUNet
from tprnet_jax.models.umamba import UMamba
from tprnet_jax.runtime import checkpoints, devices, model_file
from tprnet_jax.runtime.errors import UserError

LEAST = 32  # Smallest side of an image, pixels.
# How many of a network's first maps XLA allots to it, rounded up; 5 to all others.
_MAPS = {ResUNet: 8, CoANet: 10, DSCNet: 16, UMamba: 10, LKMUNet: 48}


class Segmentation(NamedTuple):
    """What was found in an image or a batch.

    Attributes:
        mask: `(..., height, width)` bool, where the probability exceeds one half.
        probability: `(..., height, width)` float32, of vessel.
    """

    mask: np.ndarray
    probability: np.ndarray


class Segmenter(NamedTuple):
    """A trained cascade, to be called on images.

    Attributes:
        cascade: The networks.
        params: Their parameters by branch.
        side: Longer side of the images it was trained on, pixels; None if that is not known.
        name: What it is, in a line.
        temperature: That logits are divided by for the probability; no mask depends on it.
    """

    cascade: Cascade
    params: dict
    side: int | None
    name: str
    temperature: float

    @property
    def digest(self) -> str:
        """12 digits that only models which give the same masks share."""
        alike = dataclasses.replace(self.cascade, chunk=1, topology="host")
        found = hashlib.sha256(repr(alike).encode())
        for path, leaf in jax.tree.leaves_with_path(self.params):
            found.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return found.hexdigest()[:12]

    def __call__(self, images: np.ndarray, scale: float = 0) -> Segmentation:
        """Segments an image, or a batch of images of one size.

        Args:
            images: `(height, width)` or `(batch, height, width)`, grey, vessels dark: uint8 from 0
                to 255; other integers, stretched from the least to the largest of each image; or
                floating point in [0, 1].
            scale: See `stream`.

        Returns:
            Mask and probability, of the shape of the images.

        Raises:
            ValueError: The images are not grey, have another type or range, or are too small.
        """
        given = np.asarray(images)
        if given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[-1] in (3, 4)):
            raise ValueError(
                f"The images must be (height, width) or (batch, height, width), not {given.shape}; "
                "tprnet_jax.data.images.read_grey reads colour as grey."
            )
        units = [_unit(image) for image in (given if given.ndim == 3 else given[None])]
        if not units:
            return Segmentation(np.zeros(given.shape, bool), np.zeros(given.shape, np.float32))
        found = list(self.stream(units, len(units), scale))
        found = Segmentation(*(np.stack(part) for part in zip(*found, strict=True)))
        return found if given.ndim == 3 else Segmentation(*(part[0] for part in found))

    def stream(
        self, images: Iterable[np.ndarray], batch: int = 1, scale: float = 0
    ) -> Iterator[Segmentation]:
        """Segments image after image; those that follow are read while the device computes.

        Args:
            images: Each `(height, width)`, floating point in [0, 1], of any size from 32 x 32 on.
            batch: How many of one size pass together.
            scale: By how much they are enlarged for the networks, whose logits come back to the
                images' own size; 0 brings the longer side to that of the training.
        """
        margins = functools.partial(inference.margins, self.cascade, self.params)
        examples = (
            {"image": resized(image, self.seen(image.shape, scale))[..., None], "size": image.shape}
            for image in images
        )
        for example, margin in inference.of_examples(margins, examples, batch):
            margin = resized(margin, example["size"])
            yield Segmentation(margin > 0, 1 / (1 + np.exp(-margin / self.temperature)))

    def seen(self, size: tuple[int, int], scale: float = 0) -> tuple[int, int]:
        """Height and width at which the networks see an image of this height and width."""
        if not scale:
            scale = self.side / max(size) if self.side else 1
        return tuple(max(1, round(side * scale)) for side in size)

    def check_size(self, path: Path, size: tuple[int, int], scale: float, batch: int = 1) -> None:
        """Checks that images of this height and width, from this file, can be segmented.

        Raises:
            UserError: They are too small, take more memory than is free, or there are no weights
                for their size.
        """
        if min(size) < LEAST:
            raise UserError(
                f"{path} is {size[0]} high and {size[1]} wide; at least {LEAST} x {LEAST} pixels "
                "are needed"
            )
        seen = self.seen(size, scale)
        if isinstance(self.cascade.global_net, UMamba):
            self._check_weights(path, seen)
        needed = batch * self.bytes_for(seen)
        if needed > (free := devices.free_bytes()):
            raise UserError(
                f"{path} would be segmented at {seen[0]} x {seen[1]}, which takes about "
                f"{needed / 2**30:.0f} GiB of the {free / 2**30:.0f} that are free; give a smaller "
                "config.predict.scale or batch"
            )

    def _check_weights(self, path: Path, seen: tuple[int, int]) -> None:
        try:
            self.cascade.global_net.check_size(*seen)
        except UserError as error:
            raise UserError(f"{path} cannot be segmented: {error}") from error

    def bytes_for(self, seen: tuple[int, int]) -> int:
        """About the most memory that the networks take for an image that they see at this size.

        That is what XLA allots to GlobalNet, in float32, and what goes in and comes out.
        """
        net = self.cascade.global_net
        first_map = 4 * net.channels[0] / getattr(net, "fold", 1) ** 2
        return round(seen[0] * seen[1] * (_MAPS.get(type(net), 5) * first_map + 64))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A floating-point image (height, width) at another size; itself if it has that.

    To less pixels by their areas, to more linearly between their centres.
    """
    if image.shape == size:
        return image
    shrinks = size[0] * size[1] < image.size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image.astype(np.float32), size[::-1], interpolation=how)


def _unit(image: np.ndarray) -> np.ndarray:
    """An image as float32 in [0, 1]."""
    if min(image.shape) < LEAST:
        raise ValueError(f"The image is {image.shape}; at least {LEAST} x {LEAST} is needed.")
    if image.dtype == np.uint8:
        return (image / 255).astype(np.float32)
    if image.dtype.kind in "iu":
        return stretch(image)
    if image.dtype.kind != "f" or not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"The image is {image.dtype} from {image.min()} to {image.max()}; give uint8, uint16, "
            "or floating point from 0 to 1."
        )
    return image.astype(np.float32)


def load(path: str | Path | None = None) -> Segmenter:
    """A trained model.

    Args:
        path: The workdir of a run, or a model file; None for the model that comes along.

    Raises:
        UserError: There is no usable model.
    """
    path = model_file.located(path or "")
    is_model = path.suffix == model_file.SUFFIX
    file = path if is_model else path / "config.json"
    if not (is_model or file.is_file()):
        raise UserError(
            f"{path} holds no run (no config.json); give the workdir of a run, or a model file"
        )
    return of(configuration.get_config(file), path)


def of(config: ConfigDict, path: Path) -> Segmenter:
    """The model in a workdir or a model file, as a configuration wants it.

    Raises:
        UserError: There is no usable model, or the configuration is of another.
    """
    cascade, temperature = configuration.cascade(config), config.model.temperature
    if path.suffix == model_file.SUFFIX:
        params, about = model_file.read(path, param_shapes(cascade))
        name = f"{about['name']} ({about['sha256'][:12]})"
        return Segmenter(cascade, jax.device_put(params), about["side"], name, temperature)
    params, step = workdir.restore(config, path, cascade)
    return Segmenter(cascade, params, workdir.side(path), f"step {step} of {path}", temperature)


class Trained(NamedTuple):
    """Parameters to start from, and where they are from.

    Attributes:
        params: By branch.
        name: Whose they are, in a line.
        side: As of `Segmenter`.
        seen: Digests of the images they were trained on, as far as that is known.
    """

    params: dict
    name: str
    side: int | None
    seen: set[str]


def parameters(path: str, expected: dict) -> Trained:
    """Parameters to start a training from.

    Args:
        path: See `model_file.located`; of a run, the best checkpoint counts.
        expected: Parameters, or their shapes and types.

    Raises:
        UserError: There is no model, or it has other networks.
    """
    found = model_file.located(path)
    if found.suffix == model_file.SUFFIX:
        params, about = model_file.read(found, expected)
        seen = set(about.get("seen", ()))  # Earlier versions do not say.
        return Trained(jax.device_put(params), about["name"], about["side"], seen)
    params, step = checkpoints.restore_params(found, "best", expected)
    name, seen = f"step {step} of {found}", workdir.images_seen(found)
    return Trained(params, name, workdir.side(found), seen)
