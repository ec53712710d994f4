"""The door of the web server: which requests pass, and what it tells those who run it."""
