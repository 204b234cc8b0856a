"""Averages the weights of several AST checkpoints, as `modeling-ast average` does.

python conversion/average_checkpoints.py run/checkpoint-1 run/checkpoint-2 --output-dir my-ast
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["average", *sys.argv[1:]]))
