"""How fast the cascade is on this machine: as a whole, by stage, and beside the released system."""

import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax import train
from tprnet_jax.data import arcade, loader, scene
from tprnet_jax.method import topology
from tprnet_jax.method.cascade import Cascade, to_unit
from tprnet_jax.method.state import Trainer, initial_state
from tprnet_jax.peer import ours
from tprnet_jax.peer import process as peer
from tprnet_jax.peer.ours import Batch, Subject
from tprnet_jax.report import tables, tradeoff
from tprnet_jax.report.tradeoff import Point
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_whole
from tprnet_jax.workdir import NETWORK

PHANTOM_SIDE = 512
PAPER_DICE = 0.8370  # Of TPRNet on ARCADE's validation split: the paper's Table I.
MATRIX, COPIED = 4096, 2**26  # Sides of the product, and numbers to copy, that measure the machine.


def run(config: ConfigDict, workdir: Path) -> dict:
    """Times inference and training, prints a table, writes `workdir/benchmark.json`.

    With the peer at the paper's sizes, a run that has been evaluated on the paper's test images is
    drawn beside it by accuracy and time, as `workdir/tradeoff.png`.

    Inference is on one device, training on those that share the batch. The weights are random. The
    patches are sampled on the true centrelines, so that there are as many as a trained network asks
    for. Speeds are of `config.benchmark.repeats` batches in a row, stages and comparisons medians
    of as many; compiling is not counted.

    Returns:
        What `benchmark.json` has; "inference" and "training" with "images_per_second" and "stages"
        (seconds an image) of the largest batch, and "batches" and "sides" with the others.

    Raises:
        UserError: The configuration or the data cannot be used, or the peer is not installed.
    """
    settings = config.benchmark
    configuration.check(config)
    cascade = configuration.cascade(config)
    sizes, sides = tuple(settings.batches), tuple(settings.sides)
    if not sizes or not all(isinstance(count, int) and count > 0 for count in (*sizes, *sides)):
        raise UserError(
            f"config.benchmark.batches is {sizes} and sides {sides}; give positive whole numbers, "
            "and at least one batch"
        )
    sizes = sorted(sizes)
    peers = _peers(config) if settings.peer else {}
    everything, source = _load(config, sizes[-1])
    subject = _subject(config)
    machine = _machine(config.model.dtype)
    result = {"device": _device(), "images": source, "dtype": config.model.dtype, **machine}
    for task, call in (("inference", _segment), ("training", ours.train)):
        result[task] = _task(subject, task, call, everything, sizes, sides)
        _against_machine(result[task], cascade, everything, machine)
        if peers:
            result[task] |= _beside(subject, task, call, peers, everything)
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "benchmark.json", json.dumps(result, indent=2) + "\n")
    if peers and _released(config) == configuration.cascade(configuration.default()):
        _draw_tradeoff(config, workdir, result["inference"])
    print(tables.of_speed(result))
    return result


def _subject(config: ConfigDict) -> Subject:
    @functools.cache  # A new trainer would be compiled anew.
    def trainer(batch: int) -> Trainer:
        return train.make_trainer(config, 1, devices.mesh(batch))

    cascade, state = configuration.cascade(config), initial_state(trainer(1), config.seed)
    return Subject(cascade, state, trainer, config.benchmark.repeats)


def _load(config: ConfigDict, count: int) -> tuple[Batch, str]:
    """Images and masks, and what they are: those of the data set if it is there, or phantoms."""
    data = config.data
    data_dir = os.path.expanduser(data.dir) or None
    here = data.name != "arcade" or data.source or arcade.is_downloaded(data_dir)
    if not here:
        drawn = [scene.draw(config.seed, index, PHANTOM_SIDE) for index in range(count)]
        arrays = (np.stack(part)[..., None] for part in zip(*drawn, strict=True))
        return Batch(*arrays), f"phantoms of {PHANTOM_SIDE} pixels"
    source = loader.examples(loader.prepare(data), "validation")
    examples = [source[index % len(source)] for index in range(count)]
    sizes = {example["image"].shape[:2] for example in examples}
    if len(sizes) > 1:
        raise UserError(
            f"the first {count} validation images have different sizes, among them "
            f"{' and '.join(map(str, sorted(sizes)[:2]))}; set config.benchmark.batches to 1"
        )
    arrays = (np.stack([e[part] for e in examples]) for part in ("image", "mask"))
    return Batch(*arrays), f"{data.name}, validation"


def _device() -> str:
    return f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"


# ---- The machine ---------------------------------------------------------------------------------


def _machine(dtype: str) -> dict[str, float]:
    """Floating-point operations and bytes a second, of a large product and a large copy."""
    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    numbers = jnp.ones(COPIED, jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(jnp.negative)
    product_seconds = _median(lambda: product(matrix, matrix), 3)
    copy_seconds = _median(lambda: copy(numbers), 3)
    return {
        "peak_flops": 2 * MATRIX**3 / product_seconds,
        "copy_bytes_per_second": 2 * numbers.nbytes / copy_seconds,
    }


def forward_flops(cascade: Cascade, image: tuple[int, int], patches: float) -> float:
    """Floating-point operations of all networks for an image of this size and so many patches."""
    sizes = {"global": image, "local": cascade.window_in(image), "focal": cascade.patch_in(image)}
    total = 0.0
    for name, net in cascade.networks.items():
        x = jax.ShapeDtypeStruct((1, *sizes[name], cascade.input_channels(name)), jnp.float32)
        variables = jax.eval_shape(net.init, jax.random.key(0), x)
        flops = _flops(jax.make_jaxpr(net.apply)(variables, x))
        total += flops * (patches if name == "focal" else 1)
    return total


def _flops(program: ClosedJaxpr) -> float:
    """Of a whole program, as XLA counts them, which takes a scan for one pass through its body."""
    cost = jax.jit(jaxpr_as_fun(program)).lower(*program.in_avals).cost_analysis()
    return cost["flops"] + _uncounted(program)


def _uncounted(program: ClosedJaxpr) -> float:
    """Of the other passes through the bodies of its scans."""
    total = 0.0
    for step in program.eqns:
        total += max(map(_uncounted, _inside(step)), default=0.0)  # Of a choice, one happens.
        if step.primitive.name == "scan":
            total += (step.params["length"] - 1) * _flops(step.params["jaxpr"])
    return total


def _inside(step: JaxprEqn) -> list[ClosedJaxpr]:
    """The programs that a step of a program calls."""
    parts = jax.tree.leaves(step.params)
    parts = [ClosedJaxpr(part, ()) if isinstance(part, Jaxpr) else part for part in parts]
    return [part for part in parts if isinstance(part, ClosedJaxpr)]


def _against_machine(task: dict, cascade: Cascade, batch: Batch, machine: dict) -> None:
    """Adds operations a second and their share of the measured peak."""
    centres = [
        topology.patch_centres(
            vessel,
            cascade.pixels_per_patch,
            cascade.max_patches,
            cascade.centreline,
            cascade.first_point,
        )
        for vessel in batch.vessel
    ]
    patches = statistics.fmean(map(len, centres))
    flops = forward_flops(cascade, batch.images.shape[1:3], patches)
    # A backward pass costs two forward ones: the gradients of the inputs and of the weights.
    flops *= 3 if "backward" in task["stages"] else 1
    task["patches_per_image"] = patches
    task["flops_per_second"] = flops * task["images_per_second"]
    task["share_of_peak"] = task["flops_per_second"] / machine["peak_flops"]


# ---- Timing --------------------------------------------------------------------------------------


def _seconds(call: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _median(call: Callable, repeats: int) -> float:
    _seconds(call)
    return statistics.median(_seconds(call) for _ in range(repeats))


def _segment(subject: Subject, batches: Sequence[Batch]) -> None:
    for _ in ours.segment(subject, batches):
        pass


def _task(subject: Subject, name: str, call, everything: Batch, sizes, sides) -> dict:
    """Images a second by batch and by side, and stages."""
    batches = []
    for size in sizes:
        _say(f"{name}, batch {size}")
        batch = Batch(*(array[:size] for array in everything))
        batches.append({"batch": size, **_speed(subject, call, batch)})
    by_side = []
    for side in sides:
        _say(f"{name}, {side} x {side}")
        by_side.append({"side": side, **_speed(subject, call, _resized(everything, side))})
    _say(f"{name}, stages")
    stages = _stages(subject, name, batch)
    whole = {key: batches[-1][key] for key in ("batch", "images_per_second")}
    rows = {"batches": batches, "sides": by_side, "peak_bytes": _peak_bytes()}
    return {**whole, "stages": stages, **rows}


def _speed(subject: Subject, call: Callable, batch: Batch) -> dict[str, float]:
    """Of `repeats` batches in a row, so that host and device can work side by side."""
    _seconds(lambda: call(subject, [batch]))
    seconds = _seconds(lambda: call(subject, [batch] * subject.repeats)) / subject.repeats
    return {"images_per_second": len(batch.images) / seconds}


def _peak_bytes() -> int:
    """Most memory in use so far: of the device, or of the process on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats["peak_bytes_in_use"] if stats else 1024 * kilobytes


def _resized(batch: Batch, side: int) -> Batch:
    """The first image and mask, at another size."""
    image, mask = (array[0, ..., 0] for array in batch)
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST)
    return Batch(image[None, ..., None], mask[None, ..., None])


# ---- Stages --------------------------------------------------------------------------------------


def _stages(subject: Subject, name: str, batch: Batch) -> dict[str, float]:
    """Seconds an image of each stage, one after another.

    The stages are those of `cascade.forward`; GlobalNet, and the centreline, are timed by
    themselves and taken off the stages that contain them. The whole takes less than their sum where
    the host works beside the device.
    """
    timed = ours.segment_in_turn if name == "inference" else ours.train
    runs = []
    for _ in range(subject.repeats + 1):
        clock = ours.Clock()
        timed(subject, [batch], clock)
        runs.append(clock.seconds)
    total = {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}
    parts = _parts(subject, batch, with_gradient="backward" in total)
    stages = {"global": parts["global"], "local": max(0.0, total.pop("coarse") - parts["global"])}
    if "sampling" in total:
        stages["transfer"] = parts["transfer"]
        stages["centreline"] = parts["centreline"]
        stages["sampling"] = max(0.0, total.pop("sampling") - parts["centreline"])
    return {name: s / len(batch.images) for name, s in (stages | total).items()}


def _parts(subject: Subject, batch: Batch, with_gradient: bool) -> dict[str, float]:
    """Seconds of what the program does not do by itself."""
    cascade, params = subject.cascade, subject.state.params
    images = to_unit(jnp.asarray(batch.images))

    def apply(params):
        return cascade.global_net.apply({"params": params}, images)

    forward = jax.jit((lambda params: jax.vjp(apply, params)) if with_gradient else apply)
    region = cascade.window_in(batch.images.shape[1:3])
    masks = [vessel[: region[0], : region[1]] for vessel in batch.vessel]
    sent = jax.jit(lambda masks: ~masks)(np.stack(masks))
    return {
        "global": _median(lambda: forward(params["global"]), subject.repeats),
        "transfer": _seconds(lambda: jax.device_get(sent)),
        "centreline": _seconds(lambda: [topology.centreline(m, cascade.centreline) for m in masks]),
    }


# ---- The peer ------------------------------------------------------------------------------------


class FullSize:
    """TPRNet at the paper's sizes, beside networks that were never published."""

    def __init__(self, config: ConfigDict):
        full = config.copy_and_resolve_references()
        full.model.update(configuration.default().model)
        self.subject = _subject(full)

    def seconds(self, task: str, images: np.ndarray, masks: np.ndarray) -> float:
        """How long it takes; see `peer.Peer.seconds`."""
        call = {"inference": _segment, "training": ours.train}[task]
        return _seconds(lambda: call(self.subject, [Batch(images, masks)]))


def _peers(config: ConfigDict) -> dict[str, peer.Peer | FullSize]:
    """The released system and, where its networks are not like ours, TPRNet at its sizes."""
    released = _released(config)
    peers = {} if released == configuration.cascade(config) else {"full size": FullSize(config)}
    compiled = {"eager": False, "compiled": True}
    return peers | {name: peer.Peer(released, value) for name, value in compiled.items()}


def _released(config: ConfigDict) -> Cascade:
    """What the released system is built as: our networks if they are of its kind, or its own."""
    published = configuration.default()
    alike = all(config.model[field] == published.model[field] for field in NETWORK)
    return configuration.cascade(config if alike else published)


def _draw_tradeoff(config: ConfigDict, workdir: Path, timed: dict) -> None:
    """Ours by the Dice of its evaluation, the released system by what the paper says."""
    metrics = workdir / "eval" / "validation" / "metrics.json"
    if config.data.name != "arcade" or not metrics.is_file():
        return
    dice = json.loads(metrics.read_text())["final"]["dice"]
    write_whole(workdir / "tradeoff.png", tradeoff.draw(_points(workdir.name, dice, timed)))


def _points(name: str, dice: float, timed: dict) -> list[Point]:
    released = [
        Point(f"PyTorch, {kind}", timed["peer"][kind], PAPER_DICE, quoted=True)
        for kind in ("eager", "compiled")
    ]
    return [Point(name, timed["peer"]["eager"] * timed["ratio_to_peer"], dice), *released]


def _beside(subject: Subject, task: str, call, peers: dict, batch: Batch) -> dict:
    """Images a second of ours and of each peer, timed in turn, and the ratios of ours to them.

    "ratio_to_peer" is to the released system as it is, eager.
    """
    timings = {"ours": lambda: _seconds(lambda: call(subject, [batch]))}
    for name, other in peers.items():
        timings[name] = functools.partial(other.seconds, task, *batch)
    for name, seconds in timings.items():
        _say(f"{task} beside the peer, warming up: {name}")
        seconds()
    times = {name: [] for name in timings}
    for _ in range(subject.repeats):
        for name, seconds in timings.items():
            times[name].append(seconds())
    speeds = {name: len(batch.images) / statistics.median(t) for name, t in times.items()}
    ours = speeds.pop("ours")
    names = {"eager": "peer", "compiled": "compiled_peer", "full size": "full_size"}
    ratios = {f"ratio_to_{names[name]}": ours / speed for name, speed in speeds.items()}
    return {"peer": speeds, **ratios}


def _say(what: str) -> None:
    print(f"timing {what}", flush=True)
