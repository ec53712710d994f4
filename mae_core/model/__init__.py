"""The networks: position tables and the masked autoencoder."""
