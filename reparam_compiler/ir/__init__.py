"""The dataflow graph that every frontend reads into and every pass rewrites."""
