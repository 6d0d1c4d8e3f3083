"""TPRNet in JAX/Flax: topology-guided coronary artery segmentation in X-ray angiograms."""

__version__ = "0.1.0"
