"""Pages about one run or several, made from the files in their directories. No torch."""
