"""Pages of answers, each in one self-contained file.

Text of models and judges is escaped, and the content security policy of a page forbids other scripts and loading.
"""

import base64
import hashlib
from typing import Any


def render_page(template: str, **values: Any) -> str:
    """Return the page of a template in `templates/`, with the script of its filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("sams.tables"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = templates.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template(f"{template}.html").render(values, script=script, script_hash=digest)
