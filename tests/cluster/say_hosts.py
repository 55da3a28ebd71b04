"""Says on which hosts the ranks are, or why there are none: LAUNCHER python -m tests.cluster.say_hosts"""

from __future__ import annotations

import os
import platform
import sys

os.environ.update(TF_USE_LEGACY_KERAS="1", CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")

from utils.cli import UserError
from utils.ranks.world import init_world

if __name__ == "__main__":
    try:
        hosts = init_world(True).gather(platform.node())
    except UserError as error:
        sys.exit(f"refused: {error}")
    print("hosts", *hosts, flush=True)
