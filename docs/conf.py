"""How Sphinx builds the documentation: `make docs`, or `make check`, where a warning is an error."""

from importlib.metadata import version as installed_version

project = "Consilia"
author = "The Consilia authors"
project_copyright = "The Consilia authors, Apache-2.0"
version = release = installed_version("consilia")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = "Consilia"
html_copy_source = False
html_show_sphinx = False
