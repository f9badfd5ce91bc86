"""Model files: exports, imports, and the checks that make them safe to open."""
