"""TPRNet: topology-guided segmentation of coronary arteries in X-ray angiograms."""

from pathlib import Path

__version__ = "0.1.0"


def load(path: str | Path | None = None):
    """A trained model: `load()(image)` gives its mask and probability; see `segmenter.load`."""
    from tprnet_jax import segmenter  # Not before it is wanted: it takes JAX seconds to start.

    return segmenter.load(path)
