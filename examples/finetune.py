"""Fine-tunes an AST on any data set; the same as `modeling-ast finetune`.

    python examples/finetune.py --model MODEL --data DATA --output_dir OUT [Trainer's arguments]
    python examples/finetune.py --recipe examples/recipes/demo.yaml --model MODEL [overrides]

`accelerate launch` and `torchrun` start it in several processes. The code is in
modeling_ast/training/; examples/finetune_minimal.py is a script to copy.
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
