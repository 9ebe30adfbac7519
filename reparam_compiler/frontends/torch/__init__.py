"""torch.fx graphs and exported programs in and out."""
