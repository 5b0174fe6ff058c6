"""Models as files that run without this package (docs/export.md)."""
