"""Stand-ins for hardware and for libraries that need it, strict about how they are used."""
