"""The bundled training script: python -m mae_core.train RECIPE [field=value ...].

It is `mae train`. Nothing imports it, so that `mae_core.train` stays the function.
"""

from mae_core.commands.entry import run_entry
from mae_core.commands.train import main
from mae_core.training.distributed import end_process

if __name__ == "__main__":
    run_entry(main, end_process)
