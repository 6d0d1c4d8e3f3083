"""TPRNet on your own angiograms: copy this file, or give what it leaves open on the command line.

    python -m tprnet_jax.main --config=configs/folder.py --config.data.source=FOLDER --mode=check
    python -m tprnet_jax.main --config=configs/folder.py --config.data.source=FOLDER

FOLDER contains `images/` and `masks/` with files of equal names (x.jpg and x.png are equal): PNG,
JPEG, TIFF or BMP, 8 or 16 bit. Masks hold 0 and one larger value; JPEG's grey edges are cut at half
of it. The first command reads everything once and lists what is wrong; the second trains.

Without a split file, a fifth of the images validates. All five folds, one run each:

    for fold in 0 1 2 3 4; do python -m tprnet_jax.main --config=configs/folder.py:$fold --config.data.source=FOLDER; done

Folds know nothing of patients: images of one patient in both splits make the figures too good. With
several images a patient, name the splits in a JSON file, {"train": ["x", ...], "validation": [...],
"test": [...]}, and give it as config.data.folder.splits; "test" may be left out.

The argument `compact` trains as configs/tprnet_compact.py, for machines without a GPU, on images of
one size, `gpu` the same networks as configs/tprnet_compact.py:gpu; arguments are joined by commas, as
in `folder.py:2,compact`.
"""  # noqa: E501

from ml_collections import ConfigDict

from tprnet_jax.config import compact, default, train_on_cpu, train_on_gpu
from tprnet_jax.runtime.errors import UserError

TRAININGS = {"compact": train_on_cpu, "gpu": train_on_gpu}


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    config.data.name = "folder"
    config.data.source = ""  # The folder that contains images/ and masks/.
    config.data.folder.splits = ""  # A JSON file of splits; empty for folds.
    config.data.folder.folds = 5
    config.augment.p_mirror = 0.5
    # Both sides of the window, of 448 pixels, and of the patches are for images of about 512:
    config.model.window = 448
    config.model.patch = 64
    # One image a step lets images differ in size; with more, they must all have one size.
    config.train.batch = 1
    config.train.epochs = 100
    for word in filter(None, argument.split(",")):
        if word in TRAININGS:
            compact(config)
            TRAININGS[word](config)
        elif word.isdecimal():
            config.data.folder.fold = int(word)
        else:
            raise UserError(
                f"configs/folder.py has no argument {word!r}; give the number of a fold, "
                "compact or gpu, or two of these, joined by a comma"
            )
    return config
