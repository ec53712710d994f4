"""Training images: found, packed, cropped and batched."""
