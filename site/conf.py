"""The site: Sphinx reads Markdown files and notebooks where they lie, and shows a notebook with the results of its last run."""

import re
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from fastcore.docments import docments
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.util.rst import escape

sys.path.append(str(Path(__file__).parent.parent / '.ci'))
from house import FLOORS
from notebooks import readable, results

project = html_title = 'twotower'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.linkcode']
root_doc = 'README'
include_patterns = ['*.md', 'site/*.md', 'bench/*.md', 'examples/*/*.md', 'nbs/**.ipynb']
exclude_patterns = ['.*', '_*', 'data', 'outputs', 'nbs/index*.ipynb', '**/node_modules', '**/.ipynb_checkpoints']
suppress_warnings = ['misc.highlighting_failure']
myst_enable_extensions = ['dollarmath', 'strikethrough']
myst_heading_anchors = 6
nb_execution_mode = 'off'
nb_output_stderr = 'remove'
nb_code_prompt_show = 'imports'
nb_ipywidgets_js = {}  # would be fetched from elsewhere
autodoc_default_options = {'members': True, 'member-order': 'bysource', 'ignore-module-all': True}
python_maximum_signature_line_length = 100
html_theme = 'furo'
html_copy_source = html_show_copyright = False
html_static_path = html_css_files = ['site.css']
html_math_renderer = 'mathml'


def menu(found: set[str]) -> str:
    "The sidebar: the front pages, the stages, and each folder of notebooks."
    folders = {name.split('/')[1] for name in found if re.match('nbs/.+/', name)}
    trees = {'start': ['日本語 </README.ja>', '/site/*', '/*', '/bench/*', '/examples/*/*'], 'stages': ['/nbs/*']}
    trees |= {name: [f'/nbs/{name}/*'] for name in [*FLOORS, *sorted(folders.difference(FLOORS))] if name in folders}
    start = '\n```{toctree}\n:hidden:\n:glob:\n:caption: '
    return ''.join('\n'.join([start + title, '', *links, '```', '']) for title, links in trees.items())


def fill(app, name: str, source: list[str]) -> None:
    "Give a page what does not stand in its file."
    if name == root_doc:
        source[0] += menu(app.env.found_docs)
    elif name == 'site/functions':
        for path in sorted(Path(app.srcdir, 'twotower').rglob('[a-z]*.py')):
            module = '.'.join(path.relative_to(app.srcdir).with_suffix('').parts)
            source[0] += f'\n## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n'
    elif name.startswith('nbs/'):
        source[0] = nbformat.writes(readable(nbformat.reads(source[0], 4), results(Path(app.srcdir), name)))


def describe(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    "The first line of a docstring, and the comments beside the parameters."
    lines[:] = [*map(escape, lines[:1]), '']
    own = what in ('function', 'method', 'class') and thing.__module__.startswith(project)
    for key, text in docments(thing).items() if own else ():
        lines += [f':{"returns" if key == "return" else f"param {key}"}: {escape(text)}'] if text else []


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    "Where a function stands in its notebook."
    found = re.search(r'File to edit: \S*?(nbs/\S+)\.ipynb', Path(sys.modules[info['module']].__file__).read_text())
    return f'../{found[1]}.html#def-{info["fullname"].partition(".")[0]}' if found else None


def formula(writer, node: nodes.Element) -> None:
    "Write a formula as MathML, which browsers know without help."
    writer.body.append(convert(node.astext(), display='block' if isinstance(node, nodes.math_block) else 'inline'))
    raise nodes.SkipNode


def free_folders(app, page: nodes.document) -> None:
    "A folder of the repository has no page: of a link to it the text stays."
    for link in list(page.findall(pending_xref)):
        if Path(app.srcdir, app.env.docname).parent.joinpath(link['reftarget']).is_dir():
            link.replace_self(link[0])


def setup(app) -> None:
    app.add_html_math_renderer('mathml', (formula, None), (formula, None))
    app.connect('source-read', fill)
    app.connect('autodoc-process-docstring', describe)
    app.connect('doctree-read', free_folders)
