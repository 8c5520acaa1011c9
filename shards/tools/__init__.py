"""What the commands do with whole data sets: check and describe."""
