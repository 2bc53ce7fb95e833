"""Small things that everything else stands on."""
