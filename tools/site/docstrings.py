"""Shows Keras' docstrings on the site, as an extension of Griffe.

Griffe reads Google's sections. Keras' style has two more: examples that stand
at the margin, and `Call arguments:`, which this turns into Markdown. It does
so with `Args:` and `Returns:` too, where Griffe would repeat the types that
the signature shows.
"""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.M)
SECTION = re.compile(
    r"^(Args|Call arguments|Returns):\n((?:(?: {4}.*)?\n)+)", re.M
)
ARGUMENT = re.compile(r"^(\**\w+(?:, \**\w+)*): ", re.M)


class KerasDocstrings(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text):
    text = SECTION.sub(section_in_markdown, text + "\n").rstrip()
    return EXAMPLE.sub(lambda code: f"```pycon\n{code[0]}\n```", text)


def section_in_markdown(section):
    title, text = section[1], textwrap.dedent(section[2])
    if title != "Returns":
        # After a blank line: an item that follows a list within another one.
        text = ARGUMENT.sub(r"\n- **`\1`**: ", text)
    title = title.replace("Args", "Arguments")
    return f"**{title}:**\n\n{text}\n"
