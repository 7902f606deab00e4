"""Tar shards in WebDataset's layout: found by an index, read at random, made, verified and unpacked."""
