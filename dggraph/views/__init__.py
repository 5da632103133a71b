"""Pictures, tables and pages, made without torch from graphs, paths and numbers."""
