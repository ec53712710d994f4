"""The page: an interactive demo of masked autoencoders, on top of `mae_core`.

`python -m app` serves it. `service` is the demo without a page and without Gradio; `docs/design.md`
says what else is where.
"""

import os

# For the same reason as in `mae_core/__init__.py`: before torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
