"""The model: masked autoencoder, masks, patches and losses."""
