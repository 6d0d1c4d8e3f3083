"""Every field a configuration has, with its default; files in `configs/` change some of them."""

from ml_collections import ConfigDict

from tprnet_jax.cascade import BRANCHES, REFINEMENTS, Cascade
from tprnet_jax.errors import UserError
from tprnet_jax.models.unet import UNet

DTYPES = ("float32", "bfloat16")


def default() -> ConfigDict:
    """The paper's TPRNet on ARCADE; locked, so that an unknown field is an error."""
    config = ConfigDict()
    config.seed = 0  # Of parameters, order of samples and augmentation.

    config.data = data = ConfigDict()
    data.name = "arcade"  # "arcade" or "phantom".
    data.source = ""  # arcade: folder that contains syntax/; empty downloads the archive.
    data.dir = ""  # Where prepared data sets are kept; empty means TFDS's own folder.
    data.mirror = False  # Mirror images and masks at random along both axes.
    data.workers = 0  # Processes that load and augment; 0 uses threads of this one.
    data.phantom = ConfigDict()
    data.phantom.size = 256  # Side, pixels.
    data.phantom.train = 200  # Number of training phantoms.
    data.phantom.validation = 40  # Number of validation phantoms.

    config.model = model = ConfigDict()
    model.branches = BRANCHES  # Table II: leave out "focal", or "local" and "focal".
    model.global_channels = (32, 64, 128, 256, 512, 512, 512, 512)  # A stage each.
    model.local_channels = (32, 64, 128, 256, 512, 512, 512)
    model.focal_channels = (32, 64, 128, 256)
    model.window = 448  # Side a of the local window, pixels.
    model.patch = 64  # Side b of a focal patch, pixels.
    model.pixels_per_patch = 64  # Centreline pixels to one patch.
    model.max_patches = 64  # Most patches an image; a true ARCADE centreline needs 28 at most.
    model.chunk = 32  # Patches that FocalNet takes at once.
    model.refinement = "topology_first"  # Or "location_first", as the released code merges.
    model.dtype = "float32"  # Of the networks' computation; or "bfloat16".

    config.optim = optim = ConfigDict()
    optim.name = "sgd"  # "sgd" (Nesterov momentum) or "adamw".
    optim.learning_rate = 0.01
    optim.momentum = 0.99  # sgd only.
    optim.weight_decay = 3e-5
    optim.schedule = "poly"  # "poly" (by epoch, exponent 0.9) or "cosine" (by step).
    optim.warmup = 0.0  # Epochs of linear warm-up; cosine only.
    optim.clip_norm = 12.0  # Largest norm of the gradient of all branches.

    config.train = train = ConfigDict()
    train.epochs = 100
    train.batch = 1
    train.focal_from_epoch = 1  # FocalNet sits out the epochs before.
    train.evaluate_every = 1  # Epochs between two evaluations and checkpoints.

    config.eval = evaluate = ConfigDict()
    evaluate.split = "validation"  # "train", "validation" or "test".
    evaluate.checkpoint = "best"  # "best" (final Dice) or "latest".
    evaluate.batch = 4
    evaluate.figures = 8  # Overlays: best, worst and evenly between.

    config.predict = predict = ConfigDict()
    predict.input = ""  # An image, or a folder of images.
    predict.output = ""  # The folder to write masks and overlays to.
    return config.lock()


def cascade(model: ConfigDict) -> Cascade:
    """The networks of `config.model`.

    Raises:
        UserError: A field has a value that cannot be used.
    """
    _check(model)
    nets = {
        name: UNet(tuple(model[f"{name}_channels"]), dtype=model.dtype) for name in model.branches
    }
    return Cascade(
        *(nets.get(name) for name in BRANCHES),
        window=model.window,
        patch=model.patch,
        pixels_per_patch=model.pixels_per_patch,
        max_patches=model.max_patches,
        chunk=model.chunk,
        refinement=model.refinement,
    )


def _check(model: ConfigDict) -> None:
    branches = tuple(model.branches)
    if not branches or branches != BRANCHES[: len(branches)]:
        raise UserError(
            f"config.model.branches is {branches}; choose ('global',), ('global', 'local') or "
            f"{BRANCHES}."
        )
    for field, choices in (("refinement", REFINEMENTS), ("dtype", DTYPES)):
        if model[field] not in choices:
            raise UserError(
                f"config.model.{field} is {model[field]!r}; choose one of {', '.join(choices)}."
            )
    for field in ("window", "patch", "pixels_per_patch", "max_patches", "chunk"):
        if model[field] < 1:
            raise UserError(f"config.model.{field} is {model[field]}; it must be at least 1.")
