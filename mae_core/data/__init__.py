"""Training pictures: found, packed, cropped and batched."""
