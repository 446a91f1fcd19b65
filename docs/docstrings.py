"""Docstrings' examples for mkdocstrings, which shows as code what stands under `Examples:`."""

import re
import textwrap

import griffe


class Examples(griffe.Extension):
    def on_function(self, *, func, **context):
        if func.docstring:
            func.docstring.value = re.sub(
                r"^>>> .*",
                lambda example: "Examples:\n" + textwrap.indent(example[0], "    "),
                func.docstring.value,
                flags=re.DOTALL | re.MULTILINE,
            )
