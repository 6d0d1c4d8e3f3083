"""Every field a configuration has, with its default, what it may be and what it means.

Files in `configs/` change some of them.
"""

import math
from typing import Any, NamedTuple

from tprnet_jax.method import augment, losses, optimiser
from tprnet_jax.method.cascade import (
    BRANCHES,
    CENTRELINE_REGIONS,
    REFINEMENTS,
    TOPOLOGIES,
    WINDOW_COLUMNS,
)
from tprnet_jax.method.topology import CENTRELINES, FIRST_POINTS
from tprnet_jax.models.networks import NETWORKS


class Choice(NamedTuple):
    """One of several values.

    Attributes:
        default: The one unless another is set.
        among: All of them.
    """

    default: Any
    among: tuple


class Number(NamedTuple):
    """A number between two bounds, which it may equal.

    Attributes:
        default: The one unless another is set.
        low: Smallest.
        high: Largest; infinite for any finite number.
    """

    default: float
    low: float = 0
    high: float = math.inf


_SEED = Number(0, 0, 2**31 - 1)
_FOLDS = (1, 2)
_DATA = {
    "name": Choice("arcade", ("arcade", "phantom", "folder")),
    "source": "",  # Has syntax/ (arcade; empty: download it) or images/ and masks/ (folder).
    "dir": "",  # Where prepared data sets are kept; empty means TFDS's own folder.
    # Training images kept out of training, to choose checkpoints and settings on; 0 is none.
    "holdout": Number(0),
    "holdout_seed": _SEED,  # Of their choice.
    "phantom": {
        "size": 256,  # Side, pixels.
        "train": 200,  # Number of training phantoms.
        "validation": 40,  # Number of validation phantoms.
        "seed": 0,  # Of all that is drawn.
    },
    "folder": {
        "splits": "",  # JSON file of the names of each split; empty means folds.
        "folds": Number(5, 2),  # Parts that a permutation of the images is cut into.
        "fold": Number(0),  # The part to validate on; the others train.
        "seed": _SEED,  # Of the permutation.
    },
}
_MODEL = {
    "branches": BRANCHES,  # Table II: leave out "focal", or "local" and "focal".
    # GlobalNet: TPRNet's own U-Net, or one of the networks that the paper compares with.
    "global_net": Choice("unet", tuple(NETWORKS)),
    "global_auxiliary": False,  # With the outputs that it only has in training, and their loss.
    "global_size": (512, 512),  # Height and width of the images that "umamba_enc" is made for.
    # A stage each; of another network than "unet", these stand for those of its official code.
    "global_channels": (32, 64, 128, 256, 512, 512, 512, 512),
    "local_channels": (32, 64, 128, 256, 512, 512, 512),
    "focal_channels": (32, 64, 128, 256),
    "global_fold": Choice(1, _FOLDS),  # Side of the squares of pixels that become channels: 1, or 2
    "local_fold": Choice(1, _FOLDS),  # for networks at half the resolution, with logits at the
    "focal_fold": Choice(1, _FOLDS),  # image's own.
    "guided": False,  # Local and Focal also see the probability of the stages before.
    "window": Number(448, 1),  # Side a of the local window, pixels.
    "patch": Number(64, 1),  # Side b of a focal patch, pixels.
    "pixels_per_patch": Number(64, 1),  # Centreline pixels to one patch.
    "max_patches": Number(64, 1),  # Most patches an image; a true ARCADE centreline needs 28.
    "chunk": Number(32, 1),  # Patches that FocalNet takes at once.
    # Column of the window's centre: that of the rectangle's, or "half_width" (released code).
    "window_column": Choice("midpoint", WINDOW_COLUMNS),
    "centreline": Choice("skeletonize", CENTRELINES),  # Or "close_and_thin" (released code).
    "centreline_region": Choice("window", CENTRELINE_REGIONS),  # Or "image" (released code).
    # The farthest from the "centroid", or "random", with seed 1 (released code).
    "first_point": Choice("centroid", FIRST_POINTS),
    # Or "location_first", "sequential", "canvas_mean"; see `cascade.Cascade`.
    "refinement": Choice("topology_first", REFINEMENTS),
    "temperature": Number(1.0, 0.01, 100),  # Of the final probability; --mode=calibrate fits it.
    # Each image to mean 0 and standard deviation 1; in training before its augmentation.
    "standardise": False,
    "dtype": Choice("float32", ("float32", "bfloat16")),  # Of the networks' computation.
}
_OPTIM = {
    "name": Choice("sgd", ("sgd", "adamw", "muon")),  # "sgd" is with Nesterov's momentum.
    "learning_rate": Number(0.01),
    "momentum": Number(0.99, 0, 1),  # sgd only.
    "weight_decay": Number(3e-5),
    "second_momentum": Number(0.999, 0, 1),  # adamw only: of the squared gradient.
    # See `optimiser.schedule`; "cosine" is by step, the others by epoch.
    "schedule": Choice("poly", optimiser.SCHEDULES),
    "power": Number(0.9),  # poly only: exponent.
    "warmup": Number(0.0),  # Epochs of linear warm-up; cosine only.
    "clip_norm": Number(12.0),  # Largest norm of the gradient of all branches.
}
_TRAIN = {
    "epochs": Number(100, 1),
    "steps_per_epoch": Number(0),  # 0 for one pass through the training images.
    "start_from": "",  # A workdir or model file whose weights to begin with, or "shipped".
    "batch": Number(1, 1),
    "ema": Number(0.0, 0, 1),  # Decay of the weights' average, which is evaluated; 0 for none.
    "loss": Choice("cross_entropy_dice", losses.LOSSES),  # Or "cross_entropy" alone.
    "image_dice": False,  # The loss takes the Dice of each image, not that of the whole batch.
    "focal_from_epoch": Number(1),  # FocalNet sits out the epochs before.
    "evaluate_every": Number(1, 1),  # Epochs between two evaluations, each with a checkpoint.
    "save_every": Number(500, 1),  # Steps between two checkpoints besides.
    "skip_limit": Number(10, 1),  # Steps in a row without finite loss or gradient that end it.
    "tensorboard": False,  # Write TensorBoard's files besides; needs tensorboardX.
    "refinement": Choice("", ("", *REFINEMENTS)),  # In training; empty means that of the model.
    "remat": (),  # Branches that compute activations again for the gradient, to save memory.
    "patch_gradient": True,  # False: the patches' own loss counts, but without a gradient.
}
_EVAL = {
    "split": Choice("validation", ("train", "validation", "test", "holdout")),
    "checkpoint": Choice("best", ("best", "latest")),  # The best by final Dice.
    "batch": Number(4, 1),
    "figures": Number(8),  # Overlays: best, worst and evenly between.
    "masks": False,  # Write the mask of every image.
}
_PREDICT = {
    "input": "",  # An angiogram, or a folder of angiograms and folders.
    "output": "",  # The folder to write to.
    "outputs": ("mask", "overlay"),  # Of each angiogram, among `predict.OUTPUTS`.
    "overwrite": False,  # Segment again what has all its outputs.
    # By how much images are enlarged for the networks; 0 brings the longer side to that of the
    # training, so that vessels have the width that the networks know.
    "scale": Number(0.0, 0, 16),
    "batch": Number(1, 1),  # Images of one size at a time; more may suit a GPU.
}
_SERVE = {
    "host": "127.0.0.1",  # An address of this machine; of the default, only it sees the page.
    "port": Number(8080, 0, 65535),  # 0 is any that is free.
    "max_mb": Number(200, 1),  # Largest file that the page takes, megabytes.
    "open": True,  # Open the page in a browser.
}
_BENCHMARK = {
    "batches": (1, 2, 4),  # Sizes of batch; stages and peer are timed with the last.
    "sides": (),  # Sides of square images, pixels, to time besides, one at a time.
    "repeats": Number(3, 1),  # Timings that each median is of.
    "peer": False,  # Time the released system too, in PyTorch.
}
FIELDS = {
    "seed": _SEED,  # Of parameters, order of samples, augmentation and dropout.
    "data": _DATA,
    # Nothing, unless a probability p_... is set; `augment.Settings` says what each field means.
    "augment": augment.Settings()._asdict(),
    # Where centrelines are found and sampled: "host", or "device" to the same end.
    "topology": Choice("host", TOPOLOGIES),
    "model": _MODEL,
    "optim": _OPTIM,
    "train": _TRAIN,
    "eval": _EVAL,
    "predict": _PREDICT,
    "serve": _SERVE,
    "benchmark": _BENCHMARK,
    "convert": {
        "input": "",  # To import into the workdir: a PyTorch checkpoint, NAME.npz, or "shipped".
        "output": "",  # Or the file to export the workdir's checkpoint to; or NAME.npz, a model.
    },
    "compare": {
        "runs": (),  # Workdirs of evaluated runs; the others are compared with the first.
        "images": Number(6, 1),  # In the sheet of pictures.
    },
    "export": {
        "output": "",  # The file to write the cascade to, for programs without this package.
        "shape": (),  # Number, height and width of the images that it is for; empty for any.
    },
    "ablate": {
        "seeds": (0,),  # Each ablation is trained with each of them.
    },
}
