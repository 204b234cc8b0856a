"""Runs a Trainer script with FSDP on a CPU, where accelerate by itself would not shard.

    torchrun --nproc_per_node 2 tests/fsdp_on_cpu.py examples/finetune.py ARGUMENTS

torch itself can shard over gloo; only accelerate must be changed to allow it.
"""

import os
import runpy
import sys

from accelerate import state
from accelerate.utils import DistributedType

initialise = state.AcceleratorState.__init__


def initialise_for_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    state.AcceleratorState.__init__ = initialise_for_fsdp
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
