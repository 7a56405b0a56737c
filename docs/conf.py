"""The documentation site: ``make docs``."""

import os
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = "sb3_ppo_variants"
author = "The sb3_ppo_variants developers"
version = release = (ROOT / "sb3_ppo_variants" / "version.txt").read_text(encoding="utf-8").strip()

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
# Parts that several pages include
exclude_patterns = ["_build", "**/_*.md"]

# The tests run the notebooks
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False

# Names of other projects are links where there is a network: on Read the Docs, and wherever INTERSPHINX is set
intersphinx_mapping = {}
if "READTHEDOCS" in os.environ or "INTERSPHINX" in os.environ:
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "stable_baselines3": ("https://stable-baselines3.readthedocs.io/en/master", None),
        "sb3_contrib": ("https://sb3-contrib.readthedocs.io/en/master", None),
        "gymnasium": ("https://gymnasium.farama.org", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }

nitpicky = True
# Names of other projects, where there is no network, and those that their documentation does not have
OTHERS = "stable_baselines3|sb3_contrib|gymnasium|torch|numpy|collections|pathlib|io"
nitpick_ignore_regex = [
    (r"py:.*", rf"({OTHERS})\..*"),
    # In docstrings and annotations of SB3 and Gymnasium, and types of our own for methods that return themselves
    (r"py:class", r"VecEnv|Env|Wrapper(Obs|Act)Type|sb3_ppo_variants\.(ppo\.SelfProximal|saving\.Algorithm)"),
]

html_theme = "furo"
html_title = f"sb3_ppo_variants {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_copyright = False
html_show_sphinx = False
# Prompts and output are not copied
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


def link_files_of_the_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Links of pages to what is no page: Markdown outside of the site is downloaded, as other files are; a folder is text."""
    for node in [node for node in doctree.findall(pending_xref) if node["reftype"] == "myst"]:
        folder = Path(app.srcdir, node["refdoc"]).parent
        target = Path(os.path.normpath(folder / node["reftarget"]))
        document = target.with_name(f"{target.name}.md")
        if target.is_dir():
            node.replace_self(node.children)
        elif node.get("refdomain") == "doc" and document.is_file() and not document.is_relative_to(app.srcdir):
            options = {"refdoc": node["refdoc"], "reftarget": os.path.relpath(document, folder)}
            node.replace_self(download_reference("", "", *node.children, **options))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # Before Sphinx collects what is to be downloaded
    app.connect("doctree-read", link_files_of_the_repository, priority=400)
