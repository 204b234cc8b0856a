"""Converts a DeiT or ViT trained on pictures into an AST, as `modeling-ast convert-deit` does.

python conversion/deit_to_ast.py facebook/deit-base-distilled-patch16-384 my-ast
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["convert-deit", *sys.argv[1:]]))
