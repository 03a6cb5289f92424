"""`sparsekit report`: one page about one run or many, from the files in their directories alone. No torch."""
