"""Images on disk: prepared from their sources, read as one memmap."""
