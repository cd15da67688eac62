"""Rules and health in, an ordered plan of attempts out."""
