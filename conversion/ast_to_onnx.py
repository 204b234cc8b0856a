"""Writes an AST as ONNX files for other runtimes, as `modeling-ast export` does.

python conversion/ast_to_onnx.py my-ast my-ast-onnx
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
