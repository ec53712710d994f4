"""What the command sends to a Space is all that the page needs there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from gradio_client import Client, handle_file
from PIL import Image

from app.deploy.files import choose_weights, stage
from tests.app.serving import free_port
from tests.app.test_main import first_answer


def test_the_files_of_a_space_serve_the_page(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    stage(tmp_path / "staged", "gradio", "cpu-basic", choose_weights(()))
    # The files themselves: what is staged are links to the project, which holds more.
    folder = shutil.copytree(tmp_path / "staged", tmp_path / "space")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # As Spaces start a program, but for two things: their GRADIO_SERVER_NAME is every address of
    # the machine, and by their SYSTEM Gradio reloads code with a package that only they have.
    environ |= {
        "SPACE_ID": "me/mae", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port),
        "MAE_DEVICE": "cpu", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, "app/space.py"]
    with subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        try:
            page = first_answer(f"{url}/", process)
            assert "Masked Autoencoder" in page
            thumbnail = re.search(r'"thumbnail":\s*"([^"]+)"', page)
            assert thumbnail
            for path in ("/healthz", "/stage/panels.js", f"/thumbnails/{thumbnail[1]}"):
                assert httpx.get(url + path).status_code == 200, path
            assert reconstructed(url, folder / "app/assets/examples/cat.jpg") == (224, 224)
            # As the platform does it; SIGINT is ignored by what a shell runs in the background.
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                process.kill()
    assert "Traceback" not in output


def reconstructed(url: str, picture: Path) -> tuple[int, int]:
    """The size of what the page makes of a picture."""
    client = Client(url, verbose=False)
    panels = client.predict(
        image=handle_file(picture), mask_ratio=0.75, seed=2, api_name="/reconstruct"
    )
    with Image.open(panels[3]) as pasted:
        return pasted.size
