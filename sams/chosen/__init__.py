"""Methods whose settings and length are chosen on validation pairs: the choice, what it is worth, its table."""
