"""Reports: `overlays` draws pictures, `console` prints tables, `results` writes self-contained pages."""
