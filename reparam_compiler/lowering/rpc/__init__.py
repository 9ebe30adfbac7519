"""Devices far away: TVM's tracker and servers, and models that run on them."""
