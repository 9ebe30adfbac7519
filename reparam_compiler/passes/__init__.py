"""Graph -> Graph rewrites: fusing, folding, pruning."""
