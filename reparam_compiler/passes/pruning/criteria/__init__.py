"""How channels are ranked."""
