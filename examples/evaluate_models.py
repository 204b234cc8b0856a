"""Evaluates a model, or an ensemble, on held-out clips; the same as `modeling-ast evaluate`.

python examples/evaluate_models.py MODEL... --data DATA [--eval_split test] [--json]
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
