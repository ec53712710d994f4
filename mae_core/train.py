"""The bundled training script: python -m mae_core.train RECIPE [field=value ...].

It is `mae train`. Nothing imports it, so that `mae_core.train` stays the function.
"""

import sys

from mae_core.cli import entry

if __name__ == "__main__":
    entry(["train", *sys.argv[1:]])
