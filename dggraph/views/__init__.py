"""What people look at. No torch; takes graphs, paths and numbers."""
