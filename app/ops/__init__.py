"""For whoever runs the page: numbers, log lines, a bounded folder."""
