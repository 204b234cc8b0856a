"""Names the sounds in audio files; the same as `modeling-ast classify`.

python examples/classify.py MODEL FILE... [--top-k 5] [--json] [--plot out.png]
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["classify", *sys.argv[1:]]))
