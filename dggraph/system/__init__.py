"""Interfaces to the operating system and torch.distributed: files, locks, processes, loaders."""
