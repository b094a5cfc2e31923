"""Markdown as this project writes it, to HTML that needs nothing else: formulas become MathML, code is coloured here, headings get the anchors that GitHub gives them."""

import html
import re
from collections import Counter
from collections.abc import Callable

import mistune
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound


def slug(
    heading: str,  # its text, without markup
    used: Counter,  # how often each anchor has been given on this page; counted on
) -> str:  # the anchor that GitHub gives
    "An anchor for a heading."
    name = re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')
    used[name] += 1
    return name if used[name] == 1 else f'{name}-{used[name] - 1}'


def coloured(
    code: str,  # of a block
    language: str,  # as after ```; an unknown one stays plain
) -> str:  # the inside of a <code>
    "Code with a class for each kind of token."
    try:
        return highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    except ClassNotFound:
        return html.escape(code)


def plain(
    text: str,  # HTML of one element
) -> str:  # without its tags
    "What a reader sees of it."
    return html.unescape(re.sub(r'<[^>]+>', '', text)).strip()


class Renderer(mistune.HTMLRenderer):
    "Pages of one site."

    def __init__(self, link: Callable[[str], str]):
        super().__init__(escape=True)
        self.link_to, self.used, self.headings = link, Counter(), []  # headings: level, anchor, text

    def heading(self, text: str, level: int, **attrs) -> str:
        anchor = slug(plain(text), self.used)
        self.headings.append((level, anchor, plain(text)))
        link = f'<a class="anchor" href="#{anchor}" aria-label="Link to this section">#</a>'
        return f'<h{level} id="{anchor}">{text} {link}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.link_to(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, self.link_to(url), title)

    def block_code(self, code: str, info: str | None = None) -> str:
        language = (info or 'text').split()[0]
        return f'<pre class="lang-{language}" tabindex="0"><code>{coloured(code, language)}</code></pre>\n'

    def inline_math(self, text: str) -> str:
        return convert(text)

    def block_math(self, text: str) -> str:
        return f'<p>{convert(text, display="block")}</p>\n'

    def table(self, text: str) -> str:
        return f'<div class="scroll" tabindex="0"><table>\n{text}</table></div>\n'


def renderer(
    link: Callable[[str], str],  # from an address in the source to one in the site
) -> tuple[mistune.Markdown, Renderer]:  # call the first on each text of a page; the second has collected its headings
    "What turns the texts of one page into HTML."
    made = Renderer(link)
    parse = mistune.create_markdown(renderer=made, plugins=['table', 'strikethrough', 'math', 'url'])
    # mistune does not know these names of its math plugin in a renderer of one's own
    made.register('inline_math', lambda _, text: made.inline_math(text))
    made.register('block_math', lambda _, text: made.block_math(text))
    return parse, made
