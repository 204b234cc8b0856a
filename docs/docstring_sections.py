"""mkdocstrings reads a section of a docstring only after an empty line; ours stand without it."""

import re

from griffe import Extension, Object

_HEADING = re.compile(r"(?<=\S)\n(?=\s*(?:Args|Returns|Raises|Source|Example):)")


class DocstringSections(Extension):
    """Sets an empty line before each section."""

    def on_instance(self, *, obj: Object, **kwargs: object) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub("\n\n", obj.docstring.value)
