"""The other ways in which images lie at --data.root: lists, tar shards, saved datasets; and which of them it is."""
