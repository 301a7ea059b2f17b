"""The lessons, to be read in order: lNN_name.py is lesson NN, and `make lesson NN` runs it."""
