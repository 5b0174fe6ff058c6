"""Pictures and pages that show what a model did: `overlays` draws, `page` writes self-contained HTML."""
