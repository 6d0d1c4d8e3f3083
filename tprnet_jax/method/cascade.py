"""TPRNet: GlobalNet, LocalNet, FocalNet and Refinement (paper, Section II and Fig. 1).

    image ─► GlobalNet ─► M1 ─► rectangle ─► window ─► LocalNet ─► M2 ─┐
      │ (device, jitted)                                               │ vessel mask to host
      │                     host (NumPy): centreline ─► farthest points ─► patch origins
      └─► crop and stack ─► FocalNet ─► M3 ─► reconstruct ─► M4 ─► refinement ─► final (jitted)

The functions on the device are pure, and their shapes do not change: the patches of a whole batch,
however many, pass through FocalNet in chunks of one size.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tprnet_jax.method import device_topology, topology, windows
from tprnet_jax.method.windows import Patches

BRANCHES = ("global", "local", "focal")
REFINEMENTS = ("topology_first", "location_first", "sequential", "canvas_mean")
WINDOW_COLUMNS = ("midpoint", "half_width")
CENTRELINE_REGIONS = ("window", "image")
TOPOLOGIES = ("host", "device")
# What the first patch on a pixel takes of it where patches are laid in order.
FIRST_SHARES = {"sequential": 0.5, "canvas_mean": 1.0}


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The networks of a TPRNet and the sizes they work at; hashable, a static argument.

    Attributes:
        global_net: Segments the whole image; any network of `models`, as the others.
        local_net: Segments the window, or None for the ablation "Global only".
        focal_net: Segments the patches, or None for the ablations without it.
        window: Side a of the local window, pixels; it shrinks to the image where that is smaller.
        patch: Side b of a patch, pixels; it shrinks likewise.
        pixels_per_patch: Centreline pixels to one patch.
        max_patches: Most patches an image.
        chunk: Patches that FocalNet takes at once.
        refinement: "topology_first" merges M4 with M2, then the result with M1, as the paper does;
            "location_first" merges M2 with M1, then M4 with the result. The released code does the
            latter in ways of its own: in training "sequential", patch after patch averaged into the
            merged logits; in its test "canvas_mean", the mean of the merged logits and a canvas of
            patches that is zero where none lies.
        window_column: Column of the window's centre, see `windows.window_origin`.
        centreline_region: Where the centreline is searched: in the "window" (paper), or in the
            whole "image" (released code).
        centreline: How it is thinned, see `topology.centreline`.
        first_point: Where sampling starts, see `topology.farthest_points`.
        standardise: Whether the networks see each image with mean 0 and standard deviation 1.
        guided: Whether LocalNet and FocalNet see, beside the image, the vessel probability that
            the stages before give; it is a constant to the gradient.
        topology: Whether the "host" or the "device" finds the centrelines and samples them; the
            patches are the same. The device knows "skeletonize" and "centroid" alone.
    """

    global_net: nn.Module
    local_net: nn.Module | None
    focal_net: nn.Module | None
    window: int
    patch: int
    pixels_per_patch: int
    max_patches: int
    chunk: int
    refinement: str
    window_column: str = "midpoint"
    centreline_region: str = "window"
    centreline: str = "skeletonize"
    first_point: str = "centroid"
    standardise: bool = False
    guided: bool = False
    topology: str = "host"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The branches present, by name, in the order of the cascade."""
        nets = (self.global_net, self.local_net, self.focal_net)
        return {name: net for name, net in zip(BRANCHES, nets, strict=True) if net is not None}

    @property
    def stages(self) -> tuple[str, ...]:
        """The outputs, in order; "final" is that of the last branch present."""
        return ("global", "global_local", "final") if self.local_net else ("global", "final")

    def input_channels(self, branch: str) -> int:
        """Channels that a branch sees: the image, and what guides it."""
        return 2 if self.guided and branch != "global" else 1

    def window_in(self, image: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the local window in an image of this height and width."""
        return tuple(jax.core.min_dim(self.window, side) for side in image)

    def patch_in(self, image: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a patch in an image of this height and width."""
        return tuple(jax.core.min_dim(self.patch, side) for side in image)


class ToSample(NamedTuple):
    """What the topology stage takes.

    Attributes:
        vessel: `(batch, *region)` bool, the mask whose centreline is sampled.
        origin: `(batch, 2)` int32, the origin of that region in each image.
    """

    vessel: jax.Array
    origin: jax.Array


class Coarse(NamedTuple):
    """What GlobalNet and LocalNet give.

    Attributes:
        global_logits: `(batch, height, width, 2)`, M1.
        local_logits: `(batch, *window, 2)`, M2; None without LocalNet.
        origin: `(batch, 2)` int32, first row and column of the window; None without LocalNet.
    """

    global_logits: jax.Array
    local_logits: jax.Array | None
    origin: jax.Array | None


class Stages(Protocol):
    """How the stages of `forward` are computed: for masks, for the gradient, or in one program."""

    def coarse(self, images: jax.Array) -> tuple[Coarse, jax.Array | None, ToSample | None]:
        """GlobalNet, the window and LocalNet: M1, M2, what FocalNet sees, what is to be sampled."""

    def focal(self, seen: jax.Array, patches) -> Any:
        """FocalNet on the patches: M3, laid together as M4."""

    def refine(self, coarse: Coarse, laid) -> Any:
        """The refinement, and what is wanted of it."""


def forward(stages: Stages, images: jax.Array) -> Generator[ToSample, Any, Any]:
    """TPRNet, stage after stage (Fig. 1).

    A generator, so that other work can be done while the topology stage is on the host: it yields
    the mask to sample, is sent the patches on its centreline, and returns what `refine` gives.

    Args:
        stages: How each is computed.
        images: `(batch, height, width, 1)`.
    """
    coarse, seen, to_sample = stages.coarse(images)
    if to_sample is None:  # Without FocalNet.
        return stages.refine(coarse, None)
    patches = yield to_sample
    return stages.refine(coarse, stages.focal(seen, patches))


def run(steps: Generator, topology_stage: Callable[[ToSample], Any]) -> Any:
    """Runs `forward` to its end, the topology stage in its turn."""
    try:
        to_sample = next(steps)
    except StopIteration as end:  # Without FocalNet.
        return end.value
    return finish(steps, topology_stage(to_sample))


def finish(steps: Generator, patches: Any) -> Any:
    """Runs the rest of `forward`, which waits for the patches."""
    try:
        steps.send(patches)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the cascade has asked for patches twice")


@functools.partial(jax.jit, static_argnums=0)
def init(cascade: Cascade, key: jax.Array) -> dict:
    """Parameters of every branch, by its name.

    They depend on the key and the branch alone, so an ablation starts from the very same weights.
    """
    params = {}
    for name, net in cascade.networks.items():
        branch_key = jax.random.fold_in(key, BRANCHES.index(name))
        image = jnp.zeros((1, cascade.patch, cascade.patch, cascade.input_channels(name)))
        params[name] = net.init(branch_key, image)["params"]
    return params


def param_shapes(cascade: Cascade) -> dict:
    """Shapes and types of what `init` gives."""
    return jax.eval_shape(lambda: init(cascade, jax.random.key(0)))


def to_unit(images: jax.Array) -> jax.Array:
    """Scales 8-bit images to float32 in [0, 1]; floating-point images pass as they are."""
    return images / jnp.float32(255) if images.dtype == jnp.uint8 else images


def network_input(cascade: Cascade, images: jax.Array) -> jax.Array:
    """Images as the networks see them, `(batch, height, width, 1)` float32; see `to_unit`."""
    images = to_unit(images)
    if not cascade.standardise:
        return images
    mean, deviation = (f(images, axis=(1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.std))
    return (images - mean) / jnp.maximum(deviation, 1e-6)


def coarse_logits(
    cascade: Cascade, params: dict, images: jax.Array, global_logits: jax.Array | None = None
) -> Coarse:
    """GlobalNet, the window around what it found, and LocalNet in that window (Eqs. 1-3).

    Args:
        cascade: The networks.
        params: Parameters by branch.
        images: `(batch, height, width, 1)` float32, see `network_input`.
        global_logits: Those of GlobalNet, if they are known.

    Returns:
        Logits of both branches and the window's origin.
    """
    if global_logits is None:
        global_logits = cascade.global_net.apply({"params": params["global"]}, images)
    if cascade.local_net is None:
        return Coarse(global_logits, None, None)
    image = images.shape[1:3]
    window = cascade.window_in(image)
    start, end = windows.rectangle(is_vessel(global_logits))
    origin = windows.window_origin(start, end, window, image, cascade.window_column)
    cropped = windows.crop(_guide(cascade, images, global_logits), origin, window)
    local_logits = cascade.local_net.apply({"params": params["local"]}, cropped)
    return Coarse(global_logits, local_logits, origin)


def _guide(cascade: Cascade, images: jax.Array, logits: jax.Array) -> jax.Array:
    """Images with the vessel probability of the stage before as a second channel, if guided."""
    if not cascade.guided:
        return images
    # A constant: each branch learns to segment, none to please the one after it.
    probability = jax.lax.stop_gradient(jax.nn.softmax(logits)[..., 1:])
    return jnp.concatenate([images, probability], axis=-1)


def focal_input(cascade: Cascade, images: jax.Array, coarse: Coarse) -> jax.Array:
    """What the patches are cut from: the images, and what M1 and M2 say together if guided.

    Args:
        cascade: The networks.
        images: `(batch, height, width, 1)` float32, see `network_input`.
        coarse: Logits of GlobalNet and LocalNet.

    Returns:
        `(batch, height, width, 1 or 2)` float32.
    """
    return _guide(cascade, images, _global_local(coarse)) if cascade.guided else images


def is_vessel(logits: jax.Array) -> jax.Array:
    """Where the foreground probability exceeds 0.5: `(..., 2)` logits to `(...)` bool."""
    return logits[..., 1] > logits[..., 0]


def sampling_mask(cascade: Cascade, coarse: Coarse) -> ToSample:
    """Vessel mask that the topology stage takes the centreline from, by M1 and M2 together."""
    if cascade.centreline_region == "image":
        return ToSample(is_vessel(_global_local(coarse)), jnp.zeros_like(coarse.origin))
    global_window = windows.crop(
        coarse.global_logits, coarse.origin, coarse.local_logits.shape[1:3]
    )
    return ToSample(is_vessel(global_window + coarse.local_logits), coarse.origin)


def sample_patches(
    cascade: Cascade, vessel: np.ndarray, origin: np.ndarray, image: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The topology stage: centreline, farthest points, valid patch origins (Eqs. 2 and 4).

    Args:
        cascade: The sizes.
        vessel: `(batch, *region)` bool, see `sampling_mask`.
        origin: `(batch, 2)`, the origin of the region in each image.
        image: Height and width of the images.

    Returns:
        `owner` `(patches,)` and `origin` `(patches, 2)`, int32, image after image, each image's
        patches in sampling order.
    """
    if cascade.topology == "device":
        patches, count = jax.device_get(patches_on_device(cascade, vessel, origin, image))
        return patches.owner[:count], patches.origin[:count]
    vessel, origin = jax.device_get((vessel, origin))
    owners, origins = [], []
    for index, (mask, corner) in enumerate(zip(vessel, origin, strict=True)):
        centres = topology.patch_centres(
            mask,
            cascade.pixels_per_patch,
            cascade.max_patches,
            cascade.centreline,
            cascade.first_point,
        )
        owners.append(np.full(len(centres), index, np.int32))
        origins.append(windows.valid_origin(centres + corner, cascade.patch_in(image), image))
    return np.concatenate(owners), np.concatenate(origins).astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 3))
def patches_on_device(
    cascade: Cascade, vessel: jax.Array, origin: jax.Array, image: tuple[int, int]
) -> tuple[Patches, jax.Array]:
    """As `sample_patches`: all patches there could be, empty slots last, and their number."""
    centres, count = device_topology.patch_centres(
        vessel, cascade.pixels_per_patch, cascade.max_patches
    )
    patch = cascade.patch_in(image)
    return device_topology.sample_patches(centres, count, origin, image, patch)


def chunks(
    size: int, owner: np.ndarray, origin: np.ndarray, batch: int, least: int = 0
) -> Iterator[Patches]:
    """Splits patches into chunks of `size`; what is left of the last one are empty slots.

    Args:
        size: Of a chunk.
        owner: `(patches,)`, see `sample_patches`.
        origin: `(patches, 2)`.
        batch: Number of images, which marks an empty slot.
        least: Number of patches to make chunks for if there are fewer.
    """
    for start in range(0, max(len(owner), least), size):
        some = slice(start, start + size)
        missing = size - len(owner[some])
        yield Patches(
            np.pad(owner[some], (0, missing), constant_values=batch),
            np.pad(origin[some], ((0, missing), (0, 0))),
        )


def focal_logits(cascade: Cascade, params: dict, seen: jax.Array, patches: Patches) -> jax.Array:
    """FocalNet on a chunk of patches: logits `(chunk, *patch, 2)`, M3 (Eq. 5).

    Patches are cut from all that is seen, so that those at the window's border see past it.
    """
    stack = windows.stack_patches(seen, patches, cascade.patch_in(seen.shape[1:3]))
    return cascade.focal_net.apply({"params": params["focal"]}, stack)


def lay(cascade: Cascade, canvas: jax.Array, logits: jax.Array, patches: Patches) -> jax.Array:
    """Lays a chunk of FocalNet's logits on a canvas, as the refinement wants them (Eq. 6)."""
    first_share = FIRST_SHARES.get(cascade.refinement)
    if first_share is None:
        return windows.lay_patches(canvas, logits, patches)
    return windows.lay_in_order(canvas, logits, patches, first_share)


def refine(cascade: Cascade, coarse: Coarse, canvas: jax.Array | None) -> dict[str, jax.Array]:
    """Merges the branches' logits; see `Cascade.refinement`.

    Args:
        cascade: The networks present and the order of refinement.
        coarse: Logits of GlobalNet and LocalNet.
        canvas: The patches' logits, see `lay`; None where FocalNet has no part.

    Returns:
        Logits `(batch, height, width, 2)` of each stage.
    """
    if cascade.local_net is None:
        return {"global": coarse.global_logits, "final": coarse.global_logits}
    global_local = _global_local(coarse)
    final = global_local if canvas is None else _with_patches(cascade, coarse, canvas)
    return {"global": coarse.global_logits, "global_local": global_local, "final": final}


def _global_local(coarse: Coarse) -> jax.Array:
    return windows.merge(coarse.global_logits, jnp.bool_(True), *_local_on_image(coarse))


def _local_on_image(coarse: Coarse) -> tuple[jax.Array, jax.Array]:
    """M2 in its place, and where that is."""
    image = coarse.global_logits.shape[1:3]
    window = jnp.ones((*coarse.local_logits.shape[:3], 1), bool)
    return tuple(windows.uncrop(x, coarse.origin, image) for x in (coarse.local_logits, window))


def _with_patches(cascade: Cascade, coarse: Coarse, canvas: jax.Array) -> jax.Array:
    if cascade.refinement == "sequential":
        return canvas[..., :-1] + (1 - canvas[..., -1:]) * _global_local(coarse)
    if cascade.refinement == "canvas_mean":
        return 0.5 * (canvas[..., :-1] + _global_local(coarse))
    focal, in_patch = windows.reconstruct(canvas)
    everywhere = jnp.bool_(True)
    if cascade.refinement == "location_first":
        return windows.merge(_global_local(coarse), everywhere, focal, in_patch)
    local_logits, in_window = _local_on_image(coarse)
    location = windows.merge(focal, in_patch, local_logits, in_window)
    return windows.merge(coarse.global_logits, everywhere, location, in_patch | in_window)
