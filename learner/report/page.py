"""Pages as one file each: templates, style and script inlined, X-rays as data, nothing loaded from elsewhere.

Contract: every text is escaped by Jinja; what a page may load is forbidden by its own policy (CSP) too. A page is
written whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from learner.files import write_whole
from learner.report.charts import HEIGHT, WIDTH, number


def write_page(path: Path, template: str, **values: object) -> None:
    """Renders `templates/TEMPLATE` with `values` to `path`."""
    environment = Environment(
        loader=PackageLoader("learner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.globals.update(width=WIDTH, height=HEIGHT)
    write_whole(path, environment.get_template(template).render(**values))
