"""What runs again after a change between two starts: exactly the stages concerned."""

from sams.config import Settings as _  # noqa: F401
