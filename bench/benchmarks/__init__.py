"""The asv suite: `asv run` in bench/, or `asv run --quick -E existing` with the package installed."""
