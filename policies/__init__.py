"""How a crystal is written (representations) and who writes it (the transformer policy)."""
