"""The paper's figures, tables and ablations, from our runs."""
