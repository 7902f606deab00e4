"""What is shown of runs: charts, pages, tables, confusions."""
