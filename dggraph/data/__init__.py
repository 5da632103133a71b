"""Sets of images: reading, augmentation, the order of samples."""
