"""What an evaluation measures, and the items that its figures are made of."""
