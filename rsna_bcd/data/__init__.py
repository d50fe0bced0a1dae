"""From prepared crops to batches: dataset, augmentation, sampling."""
