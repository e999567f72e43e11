"""The model repository: its files, its weights and the graphs that are unpacked from them."""
