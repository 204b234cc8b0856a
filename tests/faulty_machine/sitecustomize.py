"""Read by each Python that has this folder in its path: its disk takes a while to write, and it
dies when it opens a file with "deadly" in its name, as if the file crashed its decoder."""

import builtins
import os
import signal
import time

fsync, opened = os.fsync, builtins.open


def slow_fsync(handle):
    time.sleep(0.2)
    fsync(handle)


def deadly_open(file, *arguments, **named):
    if not isinstance(file, int) and "deadly" in os.path.basename(os.fsdecode(file)):
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(file, *arguments, **named)


os.fsync, builtins.open = slow_fsync, deadly_open
