"""Shows Keras' docstrings on the site, as an extension of Griffe.

Griffe reads Google's sections. Keras' style has two more: examples that stand
at the margin, and `Call arguments:`, which this turns into Markdown.
"""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.M)
SECTION = re.compile(r"^Call arguments:\n((?:(?: {4}.*)?\n)+)", re.M)
ARGUMENT = re.compile(r"^ {4}(?! )(\**\w+(?:, \**\w+)*): ", re.M)


class KerasDocstrings(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text):
    text = SECTION.sub(list_of_arguments, text + "\n").rstrip()
    return EXAMPLE.sub(lambda code: f"```pycon\n{code[0]}\n```", text)


def list_of_arguments(section):
    items = ARGUMENT.sub(r"- **`\1`**: ", section[1])
    return f"**Call arguments:**\n\n{items}\n"
