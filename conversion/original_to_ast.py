"""Converts a .pth file of the authors' own AST code, as `modeling-ast convert-original` does.

python conversion/original_to_ast.py audioset_10_10_0.4593.pth my-ast
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["convert-original", *sys.argv[1:]]))
