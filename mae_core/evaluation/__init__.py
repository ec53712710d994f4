"""What a model learned, measured."""
