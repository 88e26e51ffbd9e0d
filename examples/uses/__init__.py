"""What the examples of other uses share: the arms that are compared, and the file of finished cells."""
