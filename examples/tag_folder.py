"""Tags every audio file of a folder; the same as `modeling-ast tag`.

python examples/tag_folder.py MODEL FOLDER --output tags.parquet [--top-k 5] [--padding longest]
"""

import sys

from modeling_ast.commands import main

if __name__ == "__main__":
    sys.exit(main(["tag", *sys.argv[1:]]))
