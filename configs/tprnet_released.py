"""TPRNet as its authors released it (IPMI-NWU/TPRNet, commit 31161e0), defects included.

For published weights, and to compare with what was published. `configs/tprnet.py` follows the
paper; what this file changes is all that tells the two apart:

- The window's column is half the width of the rectangle, not its middle: a defect, which misplaces
  the window wherever the vessels are not at the left of the image.
- The centreline is that of the whole image, after a closing by squares of different size (3x3,
  4x4): a defect, which shifts and thins the mask. It is thinned by OpenCV's rules.
- Sampling starts at a point drawn with seed 1.
- Each patch is averaged into what lies there, in the order of sampling: what a pixel becomes
  depends on that order. The test does so on an empty canvas, and halves the logits where no patch
  lies: masks are the same, probabilities are not.
- The patches' own loss has no gradient: a defect, since it teaches nothing.
- There is no limit to the number of patches.

FocalNet sits out the first epoch in both. Not reproduced: mixed precision (this is float32), and the
crash where GlobalNet or the centreline finds nothing (here the window is then centred on the image,
and there are no patches).

    python -m tprnet_jax.main --config=configs/tprnet_released.py --mode=convert --config.convert.input=model_best.pth.tar --workdir=runs/released
    python -m tprnet_jax.main --config=configs/tprnet_released.py --mode=eval --workdir=runs/released
"""  # noqa: E501

from ml_collections import ConfigDict

from tprnet_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.window_column = "half_width"
    config.model.centreline_region = "image"
    config.model.centreline = "close_and_thin"
    config.model.first_point = "random"
    config.model.max_patches = 4096
    config.model.refinement = "canvas_mean"
    config.train.refinement = "sequential"
    config.train.patch_gradient = False
    return config
