"""Pages of answers, each in one self-contained file.

Text of models and judges is escaped, and the content security policy of a page forbids other scripts and loading.
"""

import base64
import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **values: Any) -> str:
    """Return the page of a template in `templates/`, with the script of its filters."""
    found = templates()
    script = found.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return found.get_template(f"{template}.html").render(values, script=script, script_hash=digest)


def templates() -> "Environment":
    """Return the templates in `templates/`, which escape every value."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("sams.tables"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
