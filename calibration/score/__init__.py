"""How good and how alike label maps are."""
