"""The page of `dggraph view`: a server for this computer alone, its images and their paths."""
