"""TPRNet in JAX/Flax: topology-guided coronary artery segmentation in X-ray angiograms."""
