"""
Equations as MathML, which browsers draw themselves: no script and no font is loaded.

The documents have them in TeX between dollars, which code hosts draw too.
"""

import html
import re

from latex2mathml.converter import convert


INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', flags=re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', flags=re.DOTALL)


def on_page_content(content, page, config, files):
    """Converts what the extension `arithmatex` has found."""
    content = INLINE.sub(lambda match: convert(html.unescape(match[1])), content)
    return BLOCK.sub(
        lambda match: f'<div class="equation">{convert(html.unescape(match[1]), display="block")}</div>', content
    )
