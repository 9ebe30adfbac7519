"""What a graph costs on a machine, by a roofline."""
