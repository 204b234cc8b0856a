"""Read by each Python that has this folder in its path: its disk takes a while to write."""

import os
import time

fsync = os.fsync


def slow_fsync(handle):
    time.sleep(0.2)
    fsync(handle)


os.fsync = slow_fsync
