"""Image sets, augmentation, and the order of samples."""
