"""`python -m modeling_ast` is the command `modeling-ast`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
