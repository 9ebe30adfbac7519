"""What a person types: `reparam`, the demo, and how they print."""
