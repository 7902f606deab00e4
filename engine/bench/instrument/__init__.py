"""What measures: races in turns, counters, floors, and the files that results lie in."""
