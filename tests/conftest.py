"""What every test starts from: no network, and property tests that always try the same cases."""

import os

from hypothesis import settings

# Before anything imports them: nothing is fetched, nothing is reported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# No deadline: a busy machine is no bug.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")
