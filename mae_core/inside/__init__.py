"""What a trained model does with one picture: sweeps, doubt, influence, attention, stages."""
