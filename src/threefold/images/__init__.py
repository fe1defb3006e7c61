"""Images: reading, geometry, preprocessing, augmentation, writing."""
