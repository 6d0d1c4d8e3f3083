"""The compact TPRNet on ARCADE: segments, and trains, on a CPU.

The networks fold squares of 2 x 2 pixels into channels, so that they are wide at half the
resolution, while their logits keep the image's. LocalNet and FocalNet also see what the stages
before found. What is evaluated is a moving average of the weights, and the best checkpoint is
chosen on 100 training images that are held out.

    python -m tprnet_jax.main --config=configs/tprnet_compact.py

trains for 40 epochs: six hours on two cores of an Intel Xeon (Sapphire Rapids; seed 0, commit
2ac4eac).

    python -m tprnet_jax.main --config=configs/tprnet_compact.py:gpu

trains for 100 epochs with more augmentation, in bfloat16: eleven minutes, three of them compiling,
on one NVIDIA H100 (seed 0, commit 765cc72).

    python -m tprnet_jax.main --config=configs/tprnet_compact.py:all

goes on from there for four epochs on all training images, without a hold-out: 45 minutes on the two
cores (seed 0, commit 5a335e2). The model that comes along is of this run.

    python -m tprnet_jax.main --config=configs/tprnet_compact.py:short

trains a narrower GlobalNet, which learns as much in a short time, for five epochs on all training
images, without a hold-out: 19 minutes on two cores of an AMD EPYC (Zen 5; the figures are means of
the seeds 0, 1 and 2, commit 3cc5e20). Mean of the final output over the 200 images of the official
validation split:

               Dice     IoU  Precision  Recall   ASD
             0.8277  0.7133     0.8653  0.8047  5.88
    gpu      0.8299  0.7171     0.8785  0.7990  5.68
    all      0.8316  0.7197     0.8764  0.8033  5.57
    short    0.8199  0.7019     0.8519  0.8004  5.89

configs/results/README.md has all stages, and what was seen on the hold-out.
"""

from ml_collections import ConfigDict

from tprnet_jax.config import augment_more, compact, default, train_on_cpu, train_on_gpu
from tprnet_jax.method.augment import Settings
from tprnet_jax.runtime.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    config = default()
    compact(config)
    train_on_cpu(config)
    config.train.evaluate_every = 2
    config.data.holdout = 100
    if argument == "gpu":
        train_on_gpu(config)
        config.train.evaluate_every = 25
    elif argument == "all":
        augment_more(config)
        config.augment.ramp = 0
        config.optim.learning_rate = 1e-3
        config.train.start_from = "runs/tprnet_compact_gpu"
        config.train.epochs = config.train.evaluate_every = 4
        config.data.holdout = 0
    elif argument == "short":
        config.model.global_channels = (16, 32, 64, 128, 128, 128, 128)
        config.train.epochs = 5
        config.train.evaluate_every = 5
        config.data.holdout = 0
        config.augment.update(Settings()._asdict())
    elif argument:
        raise UserError(
            f"configs/tprnet_compact.py has no argument {argument!r}; choose short, gpu or all"
        )
    return config
