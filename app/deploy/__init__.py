"""Deploying the page as a Space of the Hugging Face hub: python -m app.deploy USER/SPACE."""
