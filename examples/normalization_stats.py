"""Mean and standard deviation of a data set's log-mel values; the same as `modeling-ast stats`.

python examples/normalization_stats.py MODEL --data DATA [--train_split train] [--num_workers 4]
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["stats", *sys.argv[1:]]))
