"""A trained model becomes a stock checkpoint folder."""
